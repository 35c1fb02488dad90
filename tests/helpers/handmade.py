"""Search spaces of small networks written by hand: criteria, budgets and methods tested without the engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from niwaki.core.cost import CostModel, Terms
from niwaki.core.counts import Counts
from niwaki.core.numbers import Numbers
from niwaki.core.plan import tensor_shapes
from niwaki.core.space import Group, Pin, SearchSpace
from niwaki.core.tensor_dims import Role, TensorDim, slices_by_group

# (tensor, dim, offset, positions per unit, produces, driven): unit u owns offset + u * per .. offset + (u + 1) * per
Owned = tuple[str, int, int, int, bool, bool]


def handmade(
    model: nn.Module,
    groups: dict[str, tuple[int, list[Owned]]],
    macs: list[tuple[float, list[tuple[str, int] | None]]],
    pins: tuple[Pin, ...] = (),
) -> SearchSpace:
    """A space of groups ``{name: (units, what they own)}``; MACs are terms (constant, axes as (tensor, dim))."""
    parameters = dict(model.named_parameters())
    tensors = {name: tensor.shape for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    total = sum(units for units, _ in groups.values())
    owners: dict[tuple[str, int], list[list[int]]] = {}
    roles: dict[tuple[str, int], Role] = {}
    first = 0
    for units, owned in groups.values():
        for tensor, dim, offset, per, makes, drives in owned:
            index = offset + np.arange(units * per).reshape(units, per)
            roles[tensor, dim] = Role.PRODUCER if makes else Role.ZEROED_CONSUMER if drives else Role.CONSUMER
            place = owners.setdefault((tensor, dim), [[] for _ in range(tensors[tensor][dim])])
            for unit in range(units):
                for position in index[unit]:
                    place[position].append(first + unit)
        first += units
    dims = []
    for (tensor, dim), rows in owners.items():
        width = max(map(len, rows))
        padded = np.array([row + [total] * (width - len(row)) for row in rows], np.int64)
        dims.append(TensorDim(tensor, dim, padded, roles[tensor, dim], tensor in parameters))
    starts = np.cumsum([0, *(units for units, _ in groups.values())])
    made = [
        Group(name, int(start), units, slices)
        for (name, (units, _)), start, slices in zip(
            groups.items(), starts[:-1], slices_by_group(dims, starts), strict=True
        )
    ]

    axes = {
        (name, dim): number
        for number, (name, dim) in enumerate((n, d) for n, s in tensors.items() for d in range(len(s)))
    }
    width = max([1, *(one.units.shape[1] for one in dims)])
    units_R, times_R, axis_R = [], [], []
    by_key = {(one.tensor, one.dim): one for one in dims}
    for key, axis in axes.items():
        found = by_key.get(key)
        rows = np.full((tensors[key[0]][key[1]], 1), total) if found is None else found.units
        for row in rows:
            units_R.append([*row, *[total] * (width - len(row))])
            times_R.append(1.0)
            axis_R.append(axis)
    counts = Counts(total, len(axes), np.array(units_R), np.array(times_R), np.array(axis_R))

    def terms(parts: list[tuple[float, list[tuple[str, int] | None]]]) -> Terms:
        depth = max(len(keys) for _, keys in parts)
        numbers = [[len(axes) if k is None else axes[k] for k in keys] for _, keys in parts]
        padded = [row + [len(axes)] * (depth - len(row)) for row in numbers]
        return Terms(np.array([c for c, _ in parts], float), np.array(padded, np.int64))

    params = terms([(1.0, [(n, d) for d in range(p.dim())]) for n, p in parameters.items()])
    memory = terms([(4.0, [(n, d) for d in range(len(s))]) for n, s in tensors.items()])
    return SearchSpace(
        model=model,
        groups=tuple(made),
        dims=tuple(dims),
        pins=pins,
        coverage=1.0,
        shapes=tensor_shapes(model),
        cost_model=CostModel(counts, params, terms(macs), memory),
        numbers=Numbers((), {}),
    )


class MLP(nn.Module):
    """Two hidden layers."""

    def __init__(self, inputs: int = 6, first: int = 12, second: int = 8, outputs: int = 3) -> None:
        super().__init__()
        self.a = nn.Linear(inputs, first)
        self.b = nn.Linear(first, second)
        self.c = nn.Linear(second, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def mlp_space(model: MLP) -> SearchSpace:
    return handmade(
        model,
        {
            "first": (
                model.a.out_features,
                [
                    ("a.weight", 0, 0, 1, True, True),
                    ("a.bias", 0, 0, 1, True, True),
                    ("b.weight", 1, 0, 1, False, False),
                ],
            ),
            "second": (
                model.b.out_features,
                [
                    ("b.weight", 0, 0, 1, True, True),
                    ("b.bias", 0, 0, 1, True, True),
                    ("c.weight", 1, 0, 1, False, False),
                ],
            ),
        },
        [(1.0, [(f"{name}.weight", 0), (f"{name}.weight", 1)]) for name in "abc"],
        (Pin("c.weight", 0, model.c.out_features, "is an output of the model", None),),
    )


class ConvNet(nn.Module):
    """A residual block with norms, a transposed convolution (produces along dimension 1), a gate and a classifier.

    The gate's sigmoid maps zero to one half, so the entries that read the gated channels are driven as well.
    """

    def __init__(self, width: int = 8, inner: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(width)
        self.up = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.down = nn.ConvTranspose2d(inner, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.mid = nn.Conv2d(width, inner, 1)
        self.head = nn.Linear(inner, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm0(self.stem(x))
        x = torch.relu(x + self.norm2(self.down(torch.relu(self.norm1(self.up(x))))))
        return self.head(torch.sigmoid(self.mid(x)).mean((2, 3)))


def conv_space(model: ConvNet) -> SearchSpace:
    def norm(name: str) -> list[Owned]:
        affine: list[Owned] = [(f"{name}.{part}", 0, 0, 1, True, True) for part in ("weight", "bias")]
        return affine + [(f"{name}.{part}", 0, 0, 1, False, False) for part in ("running_mean", "running_var")]

    width, inner = model.stem.out_channels, model.up.out_channels
    stream: list[Owned] = [("stem.weight", 0, 0, 1, True, True), *norm("norm0"), *norm("norm2")]
    stream += [("down.weight", 1, 0, 1, True, True), ("up.weight", 1, 0, 1, False, False)]
    stream += [("mid.weight", 1, 0, 1, False, False)]
    hidden: list[Owned] = [("up.weight", 0, 0, 1, True, True), *norm("norm1"), ("down.weight", 0, 0, 1, False, False)]
    gated: list[Owned] = [("mid.weight", 0, 0, 1, True, True), ("mid.bias", 0, 0, 1, True, True)]
    gated += [("head.weight", 1, 0, 1, False, True)]
    macs: list[tuple[float, list[tuple[str, int] | None]]] = [
        (64.0, [(f"{name}.weight", dim) for dim in range(4)]) for name in ("stem", "up", "down", "mid")
    ]
    macs.append((1.0, [("head.weight", 0), ("head.weight", 1)]))
    return handmade(model, {"stream": (width, stream), "hidden": (inner, hidden), "gated": (inner, gated)}, macs)


class Overlap(nn.Module):
    """One matrix of 4 heads x 3 dimensions: a row belongs to a head and to a dimension, two units at once."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(5, 12)
        self.out = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.value(x))


def overlap_space(model: Overlap) -> SearchSpace:
    space = handmade(
        model,
        {
            "heads": (
                4,
                [
                    ("value.weight", 0, 0, 3, True, True),
                    ("value.bias", 0, 0, 3, True, True),
                    ("out.weight", 1, 0, 3, False, False),
                ],
            )
        },
        [(1.0, [(f"{n}.weight", 0), (f"{n}.weight", 1)]) for n in ("value", "out")],
    )

    def both(units: np.ndarray) -> np.ndarray:
        head = np.where(units[:, 0] == 4, 7, units[:, 0])
        return np.stack([head, np.where(head < 7, 4 + np.arange(len(units)) % 3, 7)], axis=1)

    # The second group: unit d owns positions d, 3 + d, 6 + d, 9 + d of the same dimensions.
    dims = tuple(replace(one, units=both(one.units)) for one in space.dims)
    heads, each = slices_by_group(dims, np.array([0, 4, 7]))
    old = space.cost_model.counts
    rows = []
    position: dict[int, int] = {}
    for units, axis in zip(old.units, old.axis, strict=True):
        at = position.get(int(axis), 0)
        position[int(axis)] = at + 1
        rows.append([units[0], 4 + at % 3] if units[0] < 4 else [7, 7])
    counts = Counts(7, old.num_axes, np.array(rows, np.int64), old.times, old.axis)
    model_cost = CostModel(counts, space.cost_model.params, space.cost_model.macs, space.cost_model.memory)
    return SearchSpace(
        model=model,
        groups=(Group("heads", 0, 4, heads), Group("dims", 4, 3, each)),
        dims=dims,
        pins=(),
        coverage=1.0,
        shapes=space.shapes,
        cost_model=model_cost,
        numbers=Numbers((), {}),
    )
