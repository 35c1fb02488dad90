"""The record of one run: operators in order, the tensors between them, where in the source each was called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

import torch

from niwaki.core.location import Location
from niwaki.core.numbers import Expression
from niwaki.core.repairs import Scalar
from niwaki.trace.describe import describe_graph
from niwaki.trace.extent import Place
from niwaki.trace.operators import argument_of
from niwaki.trace.powers import Power
from niwaki.trace.replay import Decision


class Origin(Enum):
    """The kind of source that a tensor came from."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    INPUT = "model input"
    CONSTANT = "tensor that is neither parameter, buffer nor input"
    COMPUTED = "computed"


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for value number ``value`` among the arguments of a node."""

    value: int


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the run. ``root`` is the value whose memory it shares (itself if none)."""

    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    origin: Origin
    name: str
    root: int


@dataclass(frozen=True, slots=True)
class PythonCall:
    """The innermost torch function that Python code called: its number in the trace, the function (None: operators
    that no torch function called), the whole numbers it was given, the float attributes, and the floats that change
    with sizes."""

    key: int
    function: Callable[..., Any] | None
    numbers: tuple[Expression, ...] = ()
    scalars: tuple[Scalar, ...] = ()
    powers: tuple[Power, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator call. Tensors among the arguments are `Ref`; ``outputs`` are value numbers (None: no tensor)."""

    operator: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int | None, ...]
    location: Location
    call: PythonCall

    def argument(self, name: str) -> Any:
        """The argument of this name in the operator's schema, or its default; None if it has neither."""
        position, default = argument_of(self.operator, name)
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def inputs(self) -> Iterator[int]:
        """Value numbers of all tensors among the arguments."""
        found = []
        for argument in (*self.args, *self.kwargs.values()) if self.kwargs else self.args:
            kind = type(argument)
            if kind is Ref:
                found.append(argument.value)
            elif kind is tuple or kind is list:
                found += [item.value for item in argument if type(item) is Ref]
        return iter(found)


@dataclass(frozen=True, slots=True, eq=False)
class ModuleCall:
    """One call of a module: the operators from number ``first`` to before ``end`` ran meanwhile.

    ``tensors``: the value numbers of the tensors that it was given, by the number or name of the argument and the
    places in containers. ``result``: what it returned (`niwaki.trace.module_calls`).
    """

    module: str
    first: int
    end: int
    tensors: Mapping[tuple[int | str, ...], int]
    result: Any


@dataclass(frozen=True, slots=True)
class Frozen:
    """A number that left the integers or entered arithmetic on values: a cut must not change it."""

    expression: Expression
    location: Location


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One forward pass: its nodes, the value numbers of its outputs, its mode.

    ``error``: what it failed with; ``inside``: whether an operator raised it, not Python code. ``decisions``: those
    that depended on data. ``ended``: the number of nodes when Python released a value, by value number; values that are
    not in it were never released. ``both``: the run in eval mode stands for train mode too. ``remade``: buffers, and
    the values in their places at the end. ``escaped``: where values reached code that niwaki does not follow, such as
    numpy's, by value number. ``calls``: those of modules that returned, the inner ones first.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    frozen: tuple[Frozen, ...]
    training: bool
    error: Exception | None = None
    inside: bool = False
    decisions: tuple[Decision, ...] = ()
    ended: Mapping[int, int] = field(default_factory=dict)
    both: bool = False
    escaped: Mapping[int, Location] = field(default_factory=dict)
    remade: tuple[tuple[int, int], ...] = ()
    calls: tuple[ModuleCall, ...] = ()


@dataclass(frozen=True, eq=False)
class Graph:
    """All runs of one model over one numbering of values.

    ``contents``: the entries of small constants, by value number. ``overlooked``: types of objects among the outputs
    whose tensors do not count as outputs. ``unexplained``: shapes of outputs that no operator returned and no module
    holds. ``filled``: a run put tensors into a container among its inputs. ``notes``: sentences about the runs for the
    user. ``tracked``: the places of the tracked numbers. ``asked``: where a run first asked whether gradients are
    recorded.
    """

    values: tuple[Value, ...]
    runs: tuple[Run, ...]
    contents: Mapping[int, torch.Tensor]
    overlooked: tuple[str, ...] = ()
    unexplained: tuple[tuple[int, ...], ...] = ()
    filled: bool = False
    notes: tuple[str, ...] = ()
    tracked: frozenset[Place] = frozenset()
    asked: Location | None = None

    def __str__(self) -> str:
        return describe_graph(self)

    @cached_property
    def unseen(self) -> tuple[Value, ...]:
        """The parameters that no operator of any run reads."""
        seen = {number for run in self.runs for node in run.nodes for number in node.inputs()}
        return tuple(v for v in self.values if v.origin is Origin.PARAMETER and v.number not in seen)
