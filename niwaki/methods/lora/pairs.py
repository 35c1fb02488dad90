"""LoRA pairs beside frozen weights, and the search space of the network that they will be merged into.

A pair computes the weight E = W + s B A, with W frozen, A [r, in], B [out, r] and s a number. Its modules are known by
their parts, not by their class: a module with the children ``base_layer``, ``lora_A`` and ``lora_B`` (the last two hold
one linear layer per adapter) and the attribute ``scaling``, a number per adapter. peft's layers are such modules.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.cost import CostModel
from niwaki.core.counts import IntArray
from niwaki.core.names import named_modules, named_parameters
from niwaki.core.space import BoolArray, Group, SearchSpace, Tie
from niwaki.core.tensor_dims import Slice, TensorDim
from niwaki.errors import MethodError

_PARTS = frozenset({"base_layer", "lora_A", "lora_B"})


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """``weight``, ``a`` [r, in] and ``b`` [out, r] with their names; ``out`` is the dimension of ``weight`` that ``b``
    computes (0, but 1 where the weight is stored as [in, out])."""

    names: tuple[str, str, str]
    weight: nn.Parameter
    a: nn.Parameter
    b: nn.Parameter
    scale: float
    out: int

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """s B A of some columns of A or rows of B, laid out and typed as the weight is."""
        product = self.scale * (b @ a)
        return (product.T if self.out else product).to(self.weight.dtype)

    def merge(self) -> None:
        """W <- W + s B A, B <- 0: the same network."""
        self.weight.detach().add_(self.product(self.a.detach(), self.b.detach()))
        self.b.detach().zero_()

    def fold_rows(self, rows: Tensor) -> None:
        """The same for the outputs ``rows`` alone: W_g <- W_g + s B_g A, B_g <- 0."""
        a, b = self.a.detach(), self.b.detach()
        self.weight.detach().index_add_(self.out, rows, self.product(a, b.index_select(0, rows)))
        b.index_fill_(0, rows, 0)

    def fold_columns(self, columns: Tensor) -> None:
        """The same for the inputs ``columns`` alone, where A has them: W_g <- W_g + s B A_g, A_g <- 0."""
        a, b = self.a.detach(), self.b.detach()
        self.weight.detach().index_add_(1 - self.out, columns, self.product(a.index_select(1, columns), b))
        a.index_fill_(1, columns, 0)


def find_pairs(space: SearchSpace) -> tuple[Pair, ...]:
    """All LoRA pairs of the model of ``space``.

    Raises:
        MethodError: there are none; or one is of a kind whose weight is not W + s B A, is merged already, shares its
            weight, or does not lie in the units of its weight.
    """
    model = space.model
    names = {id(parameter): name for name, parameter in named_parameters(model)}
    uses: dict[int, int] = {}
    for _, parameter in named_parameters(model, remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    pairs = []
    for name, module in named_modules(model):
        children = dict(module.named_children())
        if children.keys() >= _PARTS:
            pairs.append(_pair(name, module, children, names))
    if not pairs:
        raise MethodError(
            "The model has no LoRA layers: no module has the children base_layer, lora_A and lora_B. Add adapters "
            "before you build the search space, peft.get_peft_model(model, peft.LoraConfig(...)), or use a method that "
            "trains the weights themselves, such as niwaki.DHSPG."
        )
    for pair in pairs:
        if uses[id(pair.weight)] > 1:
            raise MethodError(
                f"The weight {pair.names[0]!r} has an adapter and is used by another module as well, which would "
                "change when the adapter is merged. Leave that layer out of the adapter's target modules, or untie the "
                "weight."
            )
        _check_units(space, pair)
    return tuple(pairs)


def _pair(name: str, module: nn.Module, children: dict[str, nn.Module], names: dict[int, str]) -> Pair:
    base = dict(children["base_layer"].named_parameters(recurse=False))
    a, b = (dict(children[part].named_children()) for part in ("lora_A", "lora_B"))
    about: dict[str, Any] = module.__dict__
    odd = [part for part, child in children.items() if part not in _PARTS and list(child.parameters())]
    odd += [part for part, value in module.named_parameters(recurse=False)]
    why = None
    if about.get("merged_adapters"):
        why = "its adapter is merged already: unmerge it first"
    elif odd:
        why = f"it has the parameters {odd[0]!r} too, so that its weight is not W + s B A (DoRA, embeddings)"
    elif len(a) != 1 or a.keys() != b.keys():
        why = f"it has {len(a)} adapters: keep the one that trains"
    elif "weight" not in base:
        why = "its base layer has no weight of its own"
    elif base["weight"].dim() != 2 or not base["weight"].is_floating_point():
        shape, dtype = list(base["weight"].shape), base["weight"].dtype
        why = f"its weight is {shape} of {dtype}, and only matrices of floating-point numbers can be changed"
    else:
        (adapter,) = a
        parts = [dict(named_parameters(one[adapter])) for one in (a, b)]
        scaling = about.get("scaling")
        if any(part.keys() != {"weight"} for part in parts):
            why = "lora_A or lora_B has more than a weight (lora_bias)"
        elif not isinstance(scaling, dict) or not isinstance(scaling.get(adapter), float | int):
            why = f"it has no number scaling[{adapter!r}]"
        else:
            weight, first, second = base["weight"], parts[0]["weight"], parts[1]["weight"]
            out = int(bool(about.get("fan_in_fan_out", False)))
            inner = first.dim() == second.dim() == 2 and first.shape[0] == second.shape[1]
            if inner and (second.shape[0], first.shape[1]) == (weight.shape[out], weight.shape[1 - out]):
                held = (names[id(weight)], names[id(first)], names[id(second)])
                return Pair(held, weight, first, second, float(scaling[adapter]), out)
            why = f"B {list(second.shape)} times A {list(first.shape)} has not the shape of its weight"
    raise MethodError(
        f"The LoRA layer {name!r} cannot be pruned: {why}. Pairs of one linear layer each can be; leave others out "
        "of the adapter's target modules."
    )


def _check_units(space: SearchSpace, pair: Pair) -> None:
    """Raise `MethodError` unless W, A and B lie in the same units."""
    tables = {(place.tensor, place.dim): place.units for place in space.dims}
    weight, a, b = pair.names
    for dim, other, of_other in ((pair.out, b, 0), (1 - pair.out, a, 1)):
        one, two = tables.get((weight, dim)), tables.get((other, of_other))
        if one is None and two is None:
            continue
        if one is None or two is None or not _same(one, two, space.num_units):
            raise MethodError(
                f"In the search space, {weight!r} dim {dim} and {other!r} dim {of_other} do not belong to the same "
                "units, although one is added to the other. Build the search space from the model with its adapters "
                "enabled, and pin both or none with `ignored`."
            )


def _same(one: IntArray, two: IntArray, padding: int) -> bool:
    """Whether the positions of two tables [n, K] have the same units."""
    width = max(one.shape[1], two.shape[1])
    wide = [np.pad(t, ((0, 0), (0, width - t.shape[1])), constant_values=padding) for t in (one, two)]
    return np.array_equal(np.sort(wide[0], axis=1), np.sort(wide[1], axis=1))


def base_layers(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """The layer beside each pair of ``model``, by the module that holds both. All else in that module is adapter."""
    parts = {module: dict(module.named_children()) for _, module in named_modules(model)}
    return {module: children["base_layer"] for module, children in parts.items() if children.keys() >= _PARTS}


def merged_space(space: SearchSpace, pairs: Sequence[Pair]) -> tuple[SearchSpace, IntArray]:
    """The search space of the network after merging, and the number in ``space`` of each of its units.

    The units of the rank, which vanish with the merge, and the tensors of the pairs are not in it; its costs are the
    merged network's, with its latency if `niwaki.timed` has measured it. Groups that no pair produces can never leave.
    Plans are made from ``space``.
    """
    adapters = {name for pair in pairs for name in pair.names[1:]}
    weights = {pair.names[0] for pair in pairs}
    inner = {n for n, group in enumerate(space.groups) if all(piece.tensor in adapters for piece in group.slices)}
    stay = [n for n in range(len(space.groups)) if n not in inner]
    own = [np.arange(space.groups[n].first, space.groups[n].first + space.groups[n].units) for n in stay]
    units = np.concatenate([np.zeros(0, np.int64), *own])
    number = np.full(space.num_units + 1, -1)
    number[units] = np.arange(len(units))
    number[space.num_units] = len(units)  # the padding

    dims = {id(dim): replace(dim, units=number[dim.units]) for dim in space.dims if dim.tensor not in adapters}
    groups: list[Group] = []
    for n in stay:
        pieces = [piece for piece in space.groups[n].slices if piece.tensor not in adapters]
        slices = tuple(Slice(dims[id(piece.whole)], piece.index) for piece in pieces)
        groups.append(replace(space.groups[n], first=int(number[space.groups[n].first]), slices=slices))
    ties = []
    for tie in space.ties:
        members = [(stay.index(g), step) for g, step in zip(tie.groups, tie.steps, strict=True) if g not in inner]
        if members:
            most = tie.most if len(members) == len(tie.groups) else 0  # the rank does not change
            ties.append(Tie(tuple(g for g, _ in members), tuple(step for _, step in members), most))
    model = space.cost_model
    counts = model.counts.renumber(number[:-1] >= 0)
    costs = CostModel(counts, model.params, model.macs, model.memory, latency=model.latency_merged)
    view = replace(space, groups=tuple(groups), dims=tuple(dims.values()), ties=tuple(ties), cost_model=costs)
    without = [
        n for n, group in enumerate(groups) if not any(s.role.produces and s.tensor in weights for s in group.slices)
    ]
    return held(view, without), units


def held(space: SearchSpace, groups: Collection[int]) -> SearchSpace:
    """``space`` with all units of ``groups``, and of groups tied to them, in their place for good."""
    fixed, tied = set(groups), {group for tie in space.ties for group in tie.groups}
    ties = [replace(tie, most=0) if fixed & set(tie.groups) else tie for tie in space.ties]
    return replace(space, ties=(*ties, *(Tie((group,), (1,), 0) for group in sorted(fixed - tied))))


def can_leave(space: SearchSpace) -> BoolArray:
    """Which groups of ``space`` can lose any unit, [groups]."""
    least = space.least_units()
    return np.array([least[n] < group.units for n, group in enumerate(space.groups)], dtype=bool)


def driven_units(space: SearchSpace, tensor: str, dim: int) -> IntArray | None:
    """The units [n, K] of the positions of a dimension that methods drive to zero, if it is one."""
    found: TensorDim | None = next(
        (p for p in space.dims if p.tensor == tensor and p.dim == dim and p.role.zeroed_by_method), None
    )
    return None if found is None else found.units


def positions(units: IntArray | None, which: BoolArray, like: Tensor) -> Tensor | None:
    """The positions of a dimension, its ``units`` [n, K], that lie in any unit of ``which`` [num_units]; or None."""
    if units is None:
        return None
    found = np.flatnonzero(np.append(which, False)[units].any(axis=1))
    return torch.from_numpy(found).to(like.device) if len(found) else None
