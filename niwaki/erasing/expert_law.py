"""The law for one block with a router: without some experts it returns what it does where their logits are minus
infinity, and all other weights and its inputs get the same gradients. Weights and inputs are random, in float64.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.edits import Edit, Keep, SetAttribute
from niwaki.core.edits.numbers import derived_attributes
from niwaki.core.integrations import registered
from niwaki.core.names import named_buffers, named_modules, named_parameters
from niwaki.core.plan import Plan, tensor_shapes
from niwaki.core.positions import Positions
from niwaki.core.precision import doubled
from niwaki.core.renaming import Renaming
from niwaki.erasing.expert_counts import Place, numbers_of
from niwaki.erasing.routers import Router
from niwaki.errors import first_line
from niwaki.surgery.cut import duplicate, edit_modules
from niwaki.trace.model_state import held
from niwaki.trace.structures import ExampleCall, contained, map_tensors, others_in, tensors_in
from niwaki.verify import difference

_SETS = 4  # of experts that are tried, besides the largest and the smallest
_DRAWS = 3  # of inputs for each set; gradients are compared for the first
_LONGER = 16  # times as many rows, to see whether their number matters
_OUTPUTS, _GRADIENTS = 1e-10, 1e-8


@dataclass(frozen=True, slots=True)
class Failure:
    """Why some experts cannot go; ``too_few``: it may be the small number that is left."""

    why: str
    too_few: bool = False


def law(block: nn.Module, router: Router, given: Sequence[ExampleCall], training: Sequence[bool]) -> Failure | None:
    """What speaks against erasing experts, from sets of different sizes; the smallest is the last."""
    rng = np.random.default_rng(0)
    drawn = sorted(rng.integers(router.least, router.experts, _SETS).tolist(), reverse=True)
    for size in (router.experts - 1, *drawn, router.least):
        kept = np.sort(rng.permutation(router.experts)[:size]).tolist()
        plan = _plan(block, [router], [kept])
        dense = with_random_weights(duplicate(block), rng)
        small, masked = _cut(dense, plan), _masked(dense, plan)
        least = size == router.least < router.experts - 1
        without = f"without {router.experts - size} of {router.experts}"
        for each, mode, draw in itertools.product(given, training, range(_DRAWS)):
            call = _random_call(each, rng)
            try:
                ours, theirs = (_run(network.train(mode), call, not draw) for network in (small, masked))
            except Exception as cause:  # noqa: BLE001 - any error of the user's code is a reason
                failed = f"{type(cause).__qualname__}: {first_line(cause)}"
                return Failure(f"its code fails {without}: {failed}", least)
            if [one.shape for one in ours.outputs] != [one.shape for one in theirs.outputs]:
                return Failure(f"{without} what it returns has another shape (it may return logits)")
            if not all(bool(one.isfinite().all()) for one in theirs.outputs if one.is_floating_point()):
                return Failure(f"{without} its result is not finite", least)
            otherwise = _differ(plan, ours, theirs)
            if otherwise is not None and _is_random(masked, call):
                otherwise = "it draws other random numbers"
            if otherwise is not None:
                return Failure(f"{without} {otherwise}{', in train mode' * mode}")
    return _law_of_more(small, masked, given, rng)


def _law_of_more(
    small: nn.Module, masked: nn.Module, given: Sequence[ExampleCall], rng: np.random.Generator
) -> Failure | None:
    """What speaks against erasing experts where there is more to route, as a capacity of each expert may."""
    for each in given:
        call = _random_call(map_tensors(each, lambda one: torch.cat([one] * _LONGER) if one.ndim else one), rng)
        try:
            theirs = _run(masked.eval(), call, False)
        except Exception:  # noqa: BLE001 - not every block takes inputs of another length
            continue
        if _otherwise(_run(small.eval(), call, False).outputs, theirs.outputs):
            return Failure("of a longer input it makes something else without some")
    return None


def law_around(
    network: nn.Module, routers: Sequence[Router], given: Sequence[ExampleCall], followed: bool
) -> str | None:
    """What speaks against erasing experts of some ``routers`` in the code around their blocks: it may count them.
    ``followed``: integrations update such numbers, as they do where all routers keep equally many."""
    plan = _halves(network, routers)
    small, masked = _cut(network, plan), _masked(network, plan)
    if followed:
        _follow(small, plan)
    for call in given:
        theirs = _run(masked.eval(), call, False)
        try:
            ours = _run(small.eval(), call, False)
        except Exception as cause:  # noqa: BLE001 - any error of the user's code is a reason
            return f"code outside of it fails with fewer: {type(cause).__qualname__}: {first_line(cause)}"
        if _otherwise(ours.outputs, theirs.outputs):
            return "code outside of it does something else with fewer"
    return None


def numbers_followed(network: nn.Module, routers: Sequence[Router]) -> frozenset[Place]:
    """The numbers of modules that integrations update where all ``routers`` keep equally many experts."""
    plan = _halves(network, routers)
    small = _cut(network, plan)
    before = numbers_of(small)
    _follow(small, plan)
    return frozenset(place for place, value in numbers_of(small).items() if before.get(place, value) != value)


def _halves(network: nn.Module, routers: Sequence[Router]) -> Plan:
    """A plan that keeps half of the experts of each router."""
    rng = np.random.default_rng(0)
    left = [max(router.least, router.experts // 2) for router in routers]
    kept = [np.sort(rng.permutation(one.experts)[:size]).tolist() for one, size in zip(routers, left, strict=True)]
    return _plan(network, routers, kept)


def _follow(small: nn.Module, plan: Plan) -> None:
    for integration in registered():
        integration.after_cut(small, plan)


def _otherwise(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return [one.shape for one in ours] != [one.shape for one in theirs] or difference([*ours], [*theirs]) > _OUTPUTS


def _plan(block: nn.Module, routers: Sequence[Router], kept: Sequence[Sequence[int]]) -> Plan:
    shapes = tensor_shapes(block)
    keeps: list[Keep] = []
    edits: list[Edit] = []
    lengths: dict[tuple[str, int], int] = {}
    for router, left in zip(routers, kept, strict=True):
        keeps += [Keep(name, dim, Positions(left)) for name, dim in router.slices]
        for entry in (entry for one in range(router.experts) if one not in left for entry in router.entries(one)):
            own = (one for one in shapes if (f"{one.name}.").startswith(f"{entry}.") and one.shape)
            keeps += [Keep(one.name, 0, Positions(())) for one in own]
        edits += router.edits(left)
        lengths |= {(name, dim): len(left) for name, dim in router.slices}
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
    """What a run returned, the gradients by the name of the parameter (of inputs: their number), the buffers, and the
    tensors that it left on modules, by the name of the attribute."""

    def __init__(
        self,
        outputs: list[Tensor],
        gradients: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        kept: Mapping[str, list[Tensor]],
    ) -> None:
        self.outputs, self.gradients, self.buffers, self.kept = outputs, gradients, buffers, kept


def _run(network: nn.Module, call: ExampleCall, backward: bool, seed: int = 0) -> _Ran:
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        fresh = tensor.detach().clone()
        if fresh.is_floating_point():
            leaves.append(fresh.requires_grad_())
            fresh = fresh * 1  # in-place operators may not write into a leaf
        return fresh

    args, kwargs = map_tensors(call, leaf)
    names = [(name, one) for name, one in named_parameters(network) if one.requires_grad]
    with seeded(seed), held(network, others_in(call)), doubled():
        outputs = list(tensors_in(network(*args, **kwargs)))
        floating = [one for one in outputs if one.is_floating_point() and one.requires_grad]
        gradients: Sequence[Tensor | None] = [None] * (len(names) + len(leaves))
        if floating and backward:
            generator = torch.Generator().manual_seed(0)
            total = sum((one * torch.randn(one.shape, generator=generator).to(one)).sum() for one in floating)
            gradients = torch.autograd.grad(total, [*(one for _, one in names), *leaves], allow_unused=True)  # type: ignore[arg-type]
        kept = _kept(network)
    keys = [*(name for name, _ in names), *(f"input {number}" for number in range(len(leaves)))]
    found = {key: one for key, one in zip(keys, gradients, strict=True) if one is not None}
    return _Ran([one.detach() for one in outputs], found, dict(named_buffers(network)), kept)


def _kept(network: nn.Module) -> dict[str, list[Tensor]]:
    """The tensors that modules hold as attributes, or in lists and dictionaries there."""
    found = {}
    for path, module in named_modules(network):
        for name, value in module.__dict__.items():
            if isinstance(value, Tensor) or (type(value) in (list, tuple, dict) and name not in _PARTS):
                found[f"{path}.{name}"] = [one.detach() for one in contained(value)]
    return found


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
    for name, held_by in theirs.kept.items():
        here = names(name)
        if here is not None and _otherwise(ours.kept.get(here, []), held_by):
            return f"it leaves another {name.rpartition('.')[2]!r} on its module"
    return None


def _is_random(network: nn.Module, call: ExampleCall) -> bool:
    """Whether a run with other random numbers returns something else."""
    first, second = (_run(network, call, False, seed).outputs for seed in (0, 1))
    return difference(first, second) > _OUTPUTS


def _gone(plan: Plan, name: str, gradient: Tensor) -> Tensor:
    """The sum of the absolute gradients that leave."""
    return gradient.abs().sum() - plan.change_of(name).of_gradient(gradient).abs().sum()


def with_random_weights(model: nn.Module, rng: np.random.Generator) -> nn.Module:
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


_PARTS = frozenset(nn.Module().__dict__)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Random numbers are the same in every block of one seed, and nothing is used up."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
