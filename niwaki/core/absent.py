"""What stands where a module has been erased: it returns zeros, in the structure that the module returned.

A `Result` says what that is, as plain values: zeros whose sizes are those of a tensor that the module is given, of
another tensor of the network, or numbers; what it is given itself; plain data; and containers of these. So it fits any
batch and any length of a sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, final

import torch
from torch import Tensor, nn

Steps = tuple[int | str, ...]  # the number or name of an argument, then the places in containers
LengthStep = tuple[int, int, int, int]  # of n becomes (n * first + second) // third + fourth
LengthOf = Callable[[tuple[tuple[str, int], ...]], int]


@dataclass(frozen=True, slots=True)
class Fixed:
    """A size that is a number."""

    size: int


@dataclass(frozen=True, slots=True)
class SizeOfTensor:
    """The size of a dimension of the first of these parameters that the network has, as (name, dimension); a number
    once the network has been cut."""

    dims: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class SumOfTensors:
    """The sizes of what is concatenated, added up."""

    sizes: tuple[SizeOfTensor, ...]


@dataclass(frozen=True, slots=True)
class TimesTensor:
    """``times`` the size of a dimension of a parameter, such as the positions in all heads."""

    size: SizeOfTensor
    times: int


@dataclass(frozen=True, slots=True)
class SizeOfArgument:
    """The size of dimension ``dim`` of the argument at ``given``, after some ``steps``: a window that is slid over it,
    for example."""

    given: Steps
    dim: int
    steps: tuple[LengthStep, ...] = ()


Size = Fixed | SizeOfTensor | SumOfTensors | TimesTensor | SizeOfArgument


class Result(ABC):
    """What a module that is not there returns, or a part of it."""

    __slots__ = ()

    @abstractmethod
    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """It, for the arguments of a call."""

    @abstractmethod
    def renamed(self, name: Callable[[str], str | None]) -> Self:
        """It, in a network whose tensors have other names."""

    @abstractmethod
    def fixed(self, length: LengthOf) -> Self:
        """It, with numbers in place of the sizes of tensors of the network."""

    @abstractmethod
    def to_data(self) -> dict[str, Any]:
        """Its content as JSON has it; `result_from_data` reads it back."""


@final
@dataclass(frozen=True, slots=True)
class Zeros(Result):
    """A tensor of zeros on the device and of the dtype of the argument at ``given``.

    ``sizes``: its shape; None for a single zero that can be added to any tensor, where the argument holds no floats.
    ``written``: whether code writes to it, so that its entries need memory.
    """

    given: Steps
    sizes: tuple[Size, ...] | None
    written: bool

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        tensor = argument(self.given, args, kwargs)
        if self.sizes is None:
            return torch.zeros((), device=tensor.device)
        shape = [_size(size, args, kwargs) for size in self.sizes]
        made: Tensor = tensor.new_zeros(shape) if self.written else tensor.new_zeros(()).expand(shape)
        return made

    def renamed(self, name: Callable[[str], str | None]) -> Self:
        if self.sizes is None:
            return self
        return replace(self, sizes=tuple(_renamed(size, name) for size in self.sizes))

    def fixed(self, length: LengthOf) -> Self:
        if self.sizes is None:
            return self
        return replace(self, sizes=tuple(_fixed(size, length) for size in self.sizes))

    def to_data(self) -> dict[str, Any]:
        sizes = None if self.sizes is None else [_size_to_data(size) for size in self.sizes]
        return {"zeros": sizes, "given": list(self.given), "written": self.written}


@final
@dataclass(frozen=True, slots=True)
class Given(Result):
    """The argument at ``given`` itself."""

    given: Steps

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return argument(self.given, args, kwargs)

    def renamed(self, name: Callable[[str], str | None]) -> Self:
        return self

    def fixed(self, length: LengthOf) -> Self:
        return self

    def to_data(self) -> dict[str, Any]:
        return {"given": list(self.given)}


@final
@dataclass(frozen=True, slots=True)
class PlainValue(Result):
    """None, a number or a text."""

    value: None | bool | int | float | str

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return self.value

    def renamed(self, name: Callable[[str], str | None]) -> Self:
        return self

    def fixed(self, length: LengthOf) -> Self:
        return self

    def to_data(self) -> dict[str, Any]:
        return {"value": self.value}


@final
@dataclass(frozen=True, slots=True)
class Container(Result):
    """A tuple, a list, or a dictionary with ``keys``, of ``items``."""

    kind: str
    items: tuple[Result, ...]
    keys: tuple[str, ...] = ()

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        items = [item.of(args, kwargs) for item in self.items]
        if self.kind == "dict":
            return dict(zip(self.keys, items, strict=True))
        return tuple(items) if self.kind == "tuple" else items

    def renamed(self, name: Callable[[str], str | None]) -> Self:
        return replace(self, items=tuple(item.renamed(name) for item in self.items))

    def fixed(self, length: LengthOf) -> Self:
        return replace(self, items=tuple(item.fixed(length) for item in self.items))

    def to_data(self) -> dict[str, Any]:
        return {self.kind: [item.to_data() for item in self.items], "keys": list(self.keys)}


def result_from_data(data: Mapping[str, Any]) -> Result:
    """What `Result.to_data` gave.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    for kind in ("tuple", "list", "dict"):
        if kind in data:
            return Container(kind, tuple(map(result_from_data, data[kind])), tuple(map(str, data["keys"])))
    if "zeros" in data:
        sizes = None if data["zeros"] is None else tuple(map(_size_from_data, data["zeros"]))
        return Zeros(_steps(data["given"]), sizes, bool(data["written"]))
    if "given" in data:
        return Given(_steps(data["given"]))
    value = data["value"]
    if not isinstance(value, (type(None), bool, int, float, str)):
        raise TypeError(f"{value!r} is no plain value")
    return PlainValue(value)


@final
class Absent(nn.Module):
    """Takes the place of a module that has been erased: it returns zeros, without parameters and without its work.

    Example:
        >>> import torch
        >>> from niwaki.core.absent import Absent, Fixed, SizeOfArgument, Zeros
        >>> absent = Absent(Zeros((0,), (SizeOfArgument((0,), 0), Fixed(3)), written=False))
        >>> absent(torch.ones(2, 5))
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """

    def __init__(self, result: Result) -> None:
        super().__init__()
        self.result = result

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros, in the structure of what the module returned."""
        return self.result.of(args, kwargs)


def argument(steps: Steps, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The argument at ``steps``.

    Raises:
        LookupError: a call has other arguments.
    """
    first, *more = steps
    found = args[first] if isinstance(first, int) else kwargs[first]
    for step in more:
        found = found[step]
    return found


def _size(size: Size, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    if isinstance(size, Fixed):
        return size.size
    assert isinstance(size, SizeOfArgument)
    return stepped(argument(size.given, args, kwargs).shape[size.dim], size.steps)


def stepped(length: int, steps: tuple[LengthStep, ...]) -> int:
    """What becomes of a length in some steps.

    >>> stepped(7, ((1, -1, 2, 1),))  # a window of three, padded by one, in steps of two
    4
    """
    for times, plus, over, more in steps:
        length = (length * times + plus) // over + more
    return length


def _fixed(size: Size, length: LengthOf) -> Size:
    if isinstance(size, SumOfTensors):
        return Fixed(sum(length(one.dims) for one in size.sizes))
    if isinstance(size, TimesTensor):
        return Fixed(size.times * length(size.size.dims))
    return Fixed(length(size.dims)) if isinstance(size, SizeOfTensor) else size


def _renamed(size: Size, name: Callable[[str], str | None]) -> Size:
    if isinstance(size, SumOfTensors):
        return SumOfTensors(tuple(_of_renamed(one, name) for one in size.sizes))
    if isinstance(size, TimesTensor):
        return replace(size, size=_of_renamed(size.size, name))
    return _of_renamed(size, name) if isinstance(size, SizeOfTensor) else size


def _of_renamed(size: SizeOfTensor, name: Callable[[str], str | None]) -> SizeOfTensor:
    return SizeOfTensor(tuple((new, dim) for tensor, dim in size.dims if (new := name(tensor)) is not None))


def _size_to_data(size: Size) -> Any:
    if isinstance(size, Fixed):
        return size.size
    if isinstance(size, SizeOfTensor):
        return [[tensor, dim] for tensor, dim in size.dims]
    if isinstance(size, SumOfTensors):
        return {"sum": [_size_to_data(one) for one in size.sizes]}
    if isinstance(size, TimesTensor):
        return {"times": size.times, "of": _size_to_data(size.size)}
    return {"given": list(size.given), "dim": size.dim, "steps": [list(step) for step in size.steps]}


def _size_from_data(data: Any) -> Size:
    if isinstance(data, int):
        return Fixed(data)
    if isinstance(data, list):
        return SizeOfTensor(tuple((str(tensor), int(dim)) for tensor, dim in data))
    if "sum" in data:
        parts = [_size_from_data(one) for one in data["sum"]]
        return SumOfTensors(tuple(one for one in parts if isinstance(one, SizeOfTensor)))
    if "times" in data:
        of = _size_from_data(data["of"])
        if not isinstance(of, SizeOfTensor):
            raise TypeError(f"{of!r} is no size of a tensor")
        return TimesTensor(of, int(data["times"]))
    steps: list[LengthStep] = []
    for step in data["steps"]:
        times, plus, over, more = map(int, step)
        if over == 0:
            raise ValueError("a length is divided by zero")
        steps.append((times, plus, over, more))
    return SizeOfArgument(_steps(data["given"]), int(data["dim"]), tuple(steps))


def _steps(data: Any) -> Steps:
    steps = tuple(step if isinstance(step, int) else str(step) for step in data)
    if not steps:
        raise ValueError("an argument without a number or a name")
    return steps
