"""Find the constants that removed units send to the layers that read them once their producers are zero, by running the
layers.

A network whose producers are zero runs on samples. After every call of a module that reads removed units, the module
runs again without them: where its outputs differ, the cut loses a value. A bias that replaces it is tried in the same
way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from niwaki.core.names import module_at, named_modules
from niwaki.repair.calibration import Samples
from niwaki.repair.consumers import Consumer
from niwaki.repair.uptake import Uptake, uptakes
from niwaki.trace.structures import ExampleCall, map_tensors, tensors_in

_ROUND_OFF = 4  # machine epsilons of the largest output
_CLOSE = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative; else 3e-2

Observe = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


@dataclass(slots=True, eq=False)
class _Values:
    """The inputs of a layer from removed units: those at the first position, and the largest distance of others from
    them."""

    first: Tensor | None = None
    far: float = 0.0
    most: float = 0.0

    def add(self, values: Tensor) -> None:
        """Add one more call, [positions, removed]."""
        if len(values):
            self.first = values[0].clone() if self.first is None else self.first
            self.far = max(self.far, float((values - self.first).abs().max()))
            self.most = max(self.most, float(values.abs().max()))

    @property
    def constant(self) -> bool:
        """Whether the inputs are equal at all positions."""
        return self.first is not None and self.far <= _CLOSE.get(self.first.dtype, 3e-2) * self.most


@dataclass(slots=True, eq=False)
class Lost:
    """A reading whose value the cut loses. ``layer``: the path of the known layer that sums over it."""

    reading: Consumer
    layer: str | None = None
    sums: list[tuple[Uptake, _Values]] = field(default_factory=list)
    problem: str | None = None

    @property
    def name(self) -> str:
        """The layer, or the parameter if it is in no known layer."""
        return self.reading.name if self.layer is None else self.layer


def lost_constants(model: nn.Module, readings: Sequence[Consumer], samples: Samples) -> list[Lost]:
    """The readings that change the output of the modules they belong to, with the inputs of these.

    A parameter belongs to the module that holds it or, if that is never called itself, to the nearest module around it
    that is.
    """
    found = [_layer_of(reading, model) for reading in readings]
    holders = _holders(model, readings)
    called: set[str] = set()
    taken: dict[str, set[int]] = {}  # by module: readings of modules inside that were not called themselves
    given: set[tuple[str, int]] = set()
    lost: set[int] = set()

    def observe(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        called.add(path)
        mine = taken.setdefault(path, set())
        for holder, numbers in holders.items():
            if holder == path:
                mine |= numbers
            elif _inside(holder, path) and holder not in called:
                mine |= {number for number in numbers if (holder, number) not in given}
                given.update((holder, number) for number in numbers)
        for number in sorted(mine - lost):
            with _at_zero([readings[number]]):
                if _differ(result, _again(module, args, kwargs), _ROUND_OFF * _epsilon(result)):
                    lost.add(number)
        for one in found:
            if one.layer == path:
                for uptake, values in one.sums:
                    read = uptake.read(args, kwargs, one.reading.removed)
                    if read is not None:
                        values.add(read)

    around = {path: module for path, module in named_modules(model) if _around(path, holders)}
    _observed(model, around, samples, observe)
    return [found[number] for number in sorted(lost)]


def moved_constants(model: nn.Module, lost: Sequence[Lost], samples: Samples) -> tuple[list[str], dict[str, str]]:
    """Move constant inputs into biases of ``model``; returns the layers whose bias changed, and the reasons of the
    others."""
    before: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}  # by layer: bias, its old value, its new value
    left: dict[str, str] = {}
    for one in lost:
        problem = one.problem or _unfit(one)
        if problem is not None:
            left.setdefault(one.name, problem)
            continue
        for uptake, values in one.sums:
            assert uptake.bias is not None and values.first is not None
            after = uptake.bias + uptake.shift(values.first, one.reading.removed).to(uptake.bias.dtype)
            before.setdefault(one.name, []).append((uptake.bias, uptake.bias.clone(), after))
    tried = {name: [one for one in lost if one.name == name] for name in before if name not in left}

    def observe(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if path in left:
            return
        with _at_zero([one.reading for one in tried[path]]):
            _write((bias, after) for bias, _, after in before[path])
            again = _again(module, args, kwargs)
            _write((bias, was) for bias, was, _ in before[path])
        if _differ(result, again, _CLOSE.get(_dtype(result), 3e-2)):
            left[path] = tried[path][0].sums[0][0].otherwise

    _observed(model, {path: module_at(model, path) for path in tried}, samples, observe)
    folded = [name for name in tried if name not in left]
    _write((bias, after) for name in folded for bias, _, after in before[name])
    return folded, left


def outputs(model: nn.Module, samples: Samples) -> list[Any]:
    """The outputs of the network for each sample."""
    return list(samples.run(model))


def unexplained(model: nn.Module, readings: Sequence[Consumer], expected: Sequence[Any], samples: Samples) -> bool:
    """Whether ``model`` without its readings gives other outputs than expected."""
    with _at_zero(readings):
        return any(
            _differ(one, other, 10 * _CLOSE.get(_dtype(one), 3e-2))
            for one, other in zip(expected, samples.run(model), strict=True)
        )


def _unfit(one: Lost) -> str | None:
    for uptake, values in one.sums:
        if values.first is None:
            return "no example input reached it as a layer of its own"
        if not values.constant:
            return "what it reads from removed units is not constant"
        if uptake.bias is None:
            return "it has no bias"
    return None


def _layer_of(reading: Consumer, model: nn.Module) -> Lost:
    """The known layer that sums over a reading, or None."""
    uses = Counter(id(value) for module in model.modules() for value in module._parameters.values())
    for path, module in named_modules(model):
        sums = [
            (one, _Values()) for one in uptakes(module) if one.weight is reading.parameter and one.dim == reading.dim
        ]
        if sums:
            shared = any(uses[id(value)] > 1 for value in module._parameters.values() if value is not None)
            return Lost(reading, path, sums, "it shares its weight or bias with another module" if shared else None)
    return Lost(reading, problem="it is read outside of the layers whose biases niwaki knows")


def _holders(model: nn.Module, readings: Sequence[Consumer]) -> dict[str, set[int]]:
    """The modules that hold the parameters of readings, with the numbers of these. A module that computes a parameter
    from others counts as part of the module that has the parameter."""
    numbers: dict[int, set[int]] = {}
    for number, reading in enumerate(readings):
        numbers.setdefault(id(reading.parameter), set()).add(number)
    computing = [path for path, module in named_modules(model) if isinstance(module, ParametrizationList)]
    found: dict[str, set[int]] = {}
    for path, module in named_modules(model):
        mine = {one for value in module._parameters.values() for one in numbers.get(id(value), ())}
        inside = next((outer for outer in computing if path == outer or _inside(path, outer)), None)
        if mine:
            owner = path if inside is None else inside.rpartition(".")[0].rpartition(".")[0]
            found.setdefault(owner, set()).update(mine)
    return found


def _inside(path: str, outer: str) -> bool:
    return path != outer and (not outer or path.startswith(f"{outer}."))


def _around(path: str, holders: Iterable[str]) -> bool:
    return any(holder == path or _inside(holder, path) for holder in holders)


def _observed(model: nn.Module, modules: Mapping[str, nn.Module], samples: Samples, observe: Observe) -> None:
    """Run ``model`` on samples, and call ``observe`` for every call of ``modules``, with copies of the inputs; it may
    call the module again."""
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    busy = False

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not busy:
            inputs.append(_copied((args, kwargs)))

    def after(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def observed(module: nn.Module, _: tuple[Any, ...], __: dict[str, Any], result: Any) -> None:
            nonlocal busy
            if not busy:
                busy = True
                observe(path, module, *inputs.pop(), result)
                busy = False

        return observed

    with ExitStack() as stack:
        for path, module in modules.items():
            # In front, so that a call with these inputs goes through the module's own hooks once.
            hook = module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
            stack.callback(hook.remove)
            stack.callback(module.register_forward_hook(after(path), with_kwargs=True).remove)
        for _ in samples.run(model):
            inputs.clear()  # of modules whose calls did not return
            busy = False


def _again(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    args, kwargs = _copied((args, kwargs))
    return module(*args, **kwargs)


def _copied(call: ExampleCall) -> ExampleCall:
    copies: ExampleCall = map_tensors(call, lambda tensor: tensor.detach().clone())
    return copies


@contextmanager
def _at_zero(readings: Sequence[Consumer]) -> Iterator[None]:
    """The parameters with zeros where they read removed units."""
    saved = [one.parameter.index_select(one.dim, one.removed) for one in readings]
    for one in readings:
        one.parameter.index_fill_(one.dim, one.removed, 0)
    try:
        yield
    finally:
        for one, values in zip(readings, saved, strict=True):
            one.parameter.index_copy_(one.dim, one.removed, values)


def _write(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    for tensor, new in values:
        tensor.copy_(new)


def _dtype(result: Any) -> torch.dtype:
    return next((tensor.dtype for tensor in tensors_in(result) if tensor.is_floating_point()), torch.float64)


def _epsilon(result: Any) -> float:
    return torch.finfo(_dtype(result)).eps


def _differ(result: Any, other: Any, tolerance: float) -> bool:
    """Whether two results differ by more than a fraction of the largest entry."""
    for one, two in zip(tensors_in(result), tensors_in(other), strict=True):
        if one.numel() and not torch.equal(one, two):
            one, two = one.nan_to_num().to(torch.float64), two.nan_to_num().to(torch.float64)
            if float((one - two).abs().max()) > tolerance * float(one.abs().max()):
                return True
    return False
