"""Try whether experts can be erased: the law, for random sets of experts of each router.

The block with the router is taken out of a narrow copy of the network, with random weights in float64. Without some
experts it has to return what it returns when the router's logits of these are minus infinity, and give all others the
same gradients; in eval mode, and in train mode where the network runs in it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.edits import Edit, EraseExperts, Keep, SetAttribute
from niwaki.core.edits.numbers import derived_attributes
from niwaki.core.names import module_at, named_buffers, named_modules, named_parameters
from niwaki.core.plan import Plan, tensor_shapes
from niwaki.core.positions import Positions
from niwaki.core.precision import doubled
from niwaki.core.renaming import Renaming
from niwaki.erasing.routers import Router
from niwaki.errors import first_line
from niwaki.surgery.cut import cut_empty, duplicate, edit_modules
from niwaki.trace.fake import is_fake
from niwaki.trace.model_state import held
from niwaki.trace.structures import ExampleCall, map_tensors, others_in, tensors_in
from niwaki.verify import difference

_SETS = 4  # of experts that are tried, besides the largest and the smallest
_DRAWS = 3  # of inputs for each set; gradients are compared for the first
_MORE = 2  # numbers of experts that are tried, where the first are too few
_OUTPUTS, _GRADIENTS = 1e-10, 1e-8


def experts_edits(router: Router, kept: Sequence[int]) -> tuple[Edit, ...]:
    """What a cut does to a router of which some experts stay, besides the `Keep` of each slice."""
    numbers = (SetAttribute(*place, len(kept)) for place in router.numbers)
    return (EraseExperts(router.weight, router.module, router.experts, Positions(kept), router.lists), *numbers)


@final
class ExpertTrials:
    """Tries routers of ``model``, each kind once.

    Args:
        model: a network of modules.
        narrow: a plan that makes it narrow and erases nothing; None if it stays as wide as it is.
        calls: what it is called with.
        training: the modes that it runs in.
    """

    def __init__(
        self, model: nn.Module, narrow: Plan | None, calls: Sequence[ExampleCall], training: Sequence[bool]
    ) -> None:
        self._model, self._narrow, self._calls, self._training = model, narrow, calls, training
        self._copy: nn.Module | None = None
        self._known: dict[object, tuple[int, str | None]] = {}

    def tried(self, router: Router) -> Router:
        """``router``, with the least number of experts that have to stay, or the reason why it cannot lose any."""
        if router.why is not None:
            return router
        kind = _kind(self._model, router)
        if kind not in self._known:
            self._known[kind] = self._outcome(router)
        least, why = self._known[kind]
        return replace(router, least=least, why=why)

    def _outcome(self, router: Router) -> tuple[int, str | None]:
        try:
            if self._copy is None:
                self._copy = _with_values(_narrowed(self._model, self._narrow))
            with _seeded(), torch.enable_grad():
                given = [_called_with(self._copy, router.block, call) for call in self._calls]
                calls = [call for call in given if call is not None]
                if not calls:
                    return router.least, f"no example call reaches {router.block!r}"
                block, inside = module_at(self._copy, router.block), _inside(router)
                for least in range(router.least, min(router.least + _MORE, router.experts)):
                    found = _law(block, replace(inside, least=least), calls, self._training)
                    if found is None or not found.too_few:
                        return least, None if found is None else found.why
                return router.least, f"its router chooses {router.least} of {router.experts} at once"
        except Exception as cause:  # noqa: BLE001 - any error of the user's code is a reason
            return router.least, f"it cannot be tried: {type(cause).__qualname__}: {first_line(cause)}"


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why some experts cannot go; ``too_few``: it may be the small number that is left."""

    why: str
    too_few: bool = False


def _law(block: nn.Module, router: Router, given: Sequence[ExampleCall], training: Sequence[bool]) -> _Failure | None:
    """What speaks against erasing experts, from sets of different sizes; the smallest is the last."""
    rng = np.random.default_rng(0)
    drawn = sorted(rng.integers(router.least, router.experts, _SETS).tolist(), reverse=True)
    for size in (router.experts - 1, *drawn, router.least):
        kept = np.sort(rng.permutation(router.experts)[:size]).tolist()
        plan = _plan(block, router, kept)
        dense = _random(duplicate(block), rng)
        small, masked = _cut(dense, plan), _masked(dense, plan)
        least = size == router.least < router.experts - 1
        without = f"without {router.experts - size} of {router.experts}"
        for each, mode, draw in itertools.product(given, training, range(_DRAWS)):
            call = _random_call(each, rng)
            try:
                ours, theirs = (_run(network.train(mode), call, not draw) for network in (small, masked))
            except Exception as cause:  # noqa: BLE001 - any error of the user's code is a reason
                failed = f"{type(cause).__qualname__}: {first_line(cause)}"
                return _Failure(f"its code fails {without}: {failed}", least)
            if [one.shape for one in ours.outputs] != [one.shape for one in theirs.outputs]:
                return _Failure(f"{without} what it returns has another shape (it may return logits)")
            if not all(bool(one.isfinite().all()) for one in theirs.outputs if one.is_floating_point()):
                return _Failure(f"{without} its result is not finite", least)
            otherwise = _differ(plan, ours, theirs)
            if otherwise is not None:
                return _Failure(f"{without} {otherwise}{', in train mode' * mode}")
    return None


def _plan(block: nn.Module, router: Router, kept: Sequence[int]) -> Plan:
    shapes = tensor_shapes(block)
    keeps = [Keep(name, dim, Positions(kept)) for name, dim in router.slices]
    for entry in (entry for one in range(router.experts) if one not in kept for entry in router.entries(one)):
        own = (one for one in shapes if (f"{one.name}.").startswith(f"{entry}.") and one.shape)
        keeps += [Keep(one.name, 0, Positions(())) for one in own]
    edits = experts_edits(router, kept)
    lengths = {(name, dim): len(kept) for name, dim in router.slices}
    attributes = [edit for edit in edits if isinstance(edit, SetAttribute)]
    return Plan({}, {}, shapes, (*keeps, *edits, *derived_attributes(block, lengths, attributes)))


def _cut(dense: nn.Module, plan: Plan) -> nn.Module:
    replaced: dict[int, object] = {}
    for name, parameter in named_parameters(dense):
        replaced[id(parameter)] = nn.Parameter(plan.change_of(name).of(parameter.detach()), parameter.requires_grad)
    for name, buffer in named_buffers(dense):
        replaced[id(buffer)] = plan.change_of(name).of(buffer)
    small = duplicate(dense, replaced)
    edit_modules(small, plan)
    return small


def _masked(dense: nn.Module, plan: Plan) -> nn.Module:
    """A copy whose router never chooses what is erased. All weights are there: none of what goes may have a part in
    anything."""
    masked = duplicate(dense)
    modules = dict(named_modules(masked))
    for edit in plan.module_edits:
        edit.mask(modules)
    return masked


class _Ran:
    """What a run returned, the gradients by the name of the parameter (of inputs: their number), and the buffers."""

    def __init__(self, outputs: list[Tensor], gradients: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        self.outputs, self.gradients, self.buffers = outputs, gradients, buffers


def _run(network: nn.Module, call: ExampleCall, backward: bool) -> _Ran:
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        fresh = tensor.detach().clone()
        if fresh.is_floating_point():
            leaves.append(fresh.requires_grad_())
            fresh = fresh * 1  # in-place operators may not write into a leaf
        return fresh

    args, kwargs = map_tensors(call, leaf)
    names = [(name, one) for name, one in named_parameters(network) if one.requires_grad]
    with _seeded(), held(network, others_in(call)), doubled():
        outputs = list(tensors_in(network(*args, **kwargs)))
        floating = [one for one in outputs if one.is_floating_point() and one.requires_grad]
        gradients: Sequence[Tensor | None] = [None] * (len(names) + len(leaves))
        if floating and backward:
            generator = torch.Generator().manual_seed(0)
            total = sum((one * torch.randn(one.shape, generator=generator).to(one)).sum() for one in floating)
            gradients = torch.autograd.grad(total, [*(one for _, one in names), *leaves], allow_unused=True)  # type: ignore[arg-type]
    keys = [*(name for name, _ in names), *(f"input {number}" for number in range(len(leaves)))]
    found = {key: one for key, one in zip(keys, gradients, strict=True) if one is not None}
    return _Ran([one.detach() for one in outputs], found, dict(named_buffers(network)))


def _differ(plan: Plan, ours: _Ran, theirs: _Ran) -> str | None:
    """What the cut block does otherwise than the masked one."""
    if difference(ours.outputs, theirs.outputs) > _OUTPUTS:
        return "it returns something else than where their logits are minus infinity"
    names = Renaming.of(plan).after
    for name, one in theirs.gradients.items():
        gone = one.abs().sum() if names(name) is None else _gone(plan, name, one)
        if float(gone) > _GRADIENTS * float(one.abs().sum()):
            return f"what goes with them in {name!r} has a part in the result all the same"
    expected = {
        new: plan.change_of(name).of_gradient(one) if name in plan.dense else one
        for name, one in theirs.gradients.items()
        if (new := names(name)) is not None
    }
    zero = {name: one for name, one in expected.items() if name not in ours.gradients}
    if any(bool((one != 0).any()) for one in zero.values()) or not ours.gradients.keys() <= expected.keys():
        return "other weights get gradients"
    pairs = [(ours.gradients[name], one) for name, one in expected.items() if name in ours.gradients]
    if difference([one for one, _ in pairs], [one for _, one in pairs]) > _GRADIENTS:
        return "its gradients are others"
    left = [(names(name), plan.change_of(name).of(one)) for name, one in theirs.buffers.items()]
    pairs = [(ours.buffers[name], one) for name, one in left if name is not None]
    if difference([one for one, _ in pairs], [one for _, one in pairs]) > _GRADIENTS:
        return "its buffers are others after it has run"
    return None


def _gone(plan: Plan, name: str, gradient: Tensor) -> Tensor:
    """The sum of the absolute gradients that leave."""
    return gradient.abs().sum() - plan.change_of(name).of_gradient(gradient).abs().sum()


def _inside(router: Router) -> Router:
    """A router with its names as they are in its block."""
    prefix = f"{router.block}." if router.block else ""

    def name(path: str) -> str:
        return "" if path == router.block else path.removeprefix(prefix)

    return replace(
        router,
        weight=name(router.weight),
        module=name(router.module),
        block="",
        slices=tuple((name(tensor), dim) for tensor, dim in router.slices),
        lists=tuple(replace(one, path=name(one.path)) for one in router.lists),
        numbers=tuple((name(path), attribute, where) for path, attribute, where in router.numbers),
    )


def _kind(model: nn.Module, router: Router) -> object:
    """What is equal for routers of which one is enough to be tried: modules of the same classes with the same settings
    and sizes."""
    inside = _inside(router)
    block = module_at(model, router.block)
    settings = []
    for path, module in named_modules(block):
        own = tuple(
            (name, _setting(value))
            for name, value in sorted(module.__dict__.items())
            if name not in _PARTS and not (name in _INTERNALS and not value)
        )
        settings.append((path, type(module), own))
    return (
        tuple(settings),
        tensor_shapes(block),
        replace(inside, node=0, location=replace(router.location, module="")),
    )


def _setting(value: Any) -> object:
    """What is equal for equal settings: of anything but plain data its identity."""
    if type(value) is dict:
        return tuple((key, _setting(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value), tuple(map(_setting, value))
    return value if type(value) in _PLAIN else id(value)


_PLAIN = (type(None), bool, int, float, str)
_INTERNALS = frozenset(nn.Module().__dict__)
_PARTS = frozenset({"_parameters", "_buffers", "_modules"})


def _narrowed(model: nn.Module, narrow: Plan | None) -> nn.Module:
    """A copy of zeros with fewer units."""
    return cut_empty(model, Plan({}, {}, tensor_shapes(model)) if narrow is None else narrow)


def _with_values(model: nn.Module) -> nn.Module:
    """``model`` in float64, with values in place of those that its parameters and buffers may be without. In place."""

    def valued(tensor: Tensor) -> Tensor:
        if tensor.is_meta or is_fake(tensor):
            tensor = torch.zeros(tensor.shape, dtype=tensor.dtype)
        return tensor.double() if tensor.is_floating_point() else tensor

    model = model._apply(valued)  # type: ignore[no-untyped-call]
    return _random(model, np.random.default_rng(0))


def _random(model: nn.Module, rng: np.random.Generator) -> nn.Module:
    """Random weights, and random vectors among the buffers. In place."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *(one for one in model.buffers() if one.ndim == 1)):
            if tensor.is_floating_point() and tensor.numel():
                scale = max(1, tensor.shape[-1] if tensor.ndim > 1 else 1) ** -0.5
                tensor.copy_(torch.from_numpy(rng.standard_normal(tuple(tensor.shape)) * scale))
    return model


def _random_call(call: ExampleCall, rng: np.random.Generator) -> ExampleCall:
    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.from_numpy(np.asarray(rng.standard_normal(tuple(tensor.shape)))).to(tensor)

    made: ExampleCall = map_tensors(call, drawn)
    return made


def _called_with(model: nn.Module, block: str, call: ExampleCall) -> ExampleCall | None:
    """What a module inside of ``model`` is given first; None if it is not called."""
    found: list[ExampleCall] = []

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not found:
            found.append(map_tensors((args, kwargs), lambda tensor: tensor.detach().clone()))

    def valued(tensor: Tensor) -> Tensor:
        if tensor.is_meta or is_fake(tensor):
            tensor = torch.zeros(tensor.shape, dtype=tensor.dtype)
        return tensor.detach().double() if tensor.is_floating_point() else tensor.detach().clone()

    handle = module_at(model, block).register_forward_pre_hook(take, with_kwargs=True)
    args, kwargs = map_tensors(call, valued)
    with held(model, others_in(call)), torch.no_grad(), doubled():
        try:
            model.eval()(*args, **kwargs)
        finally:
            handle.remove()
    return found[0] if found else None


@contextmanager
def _seeded() -> Iterator[None]:
    """Random numbers are the same in every block of this kind, and nothing is used up."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
