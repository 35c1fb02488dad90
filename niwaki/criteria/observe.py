"""Observe the activations of units: the values that matrix products and convolutions read while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from niwaki.core.dying import homes, structure_units
from niwaki.core.names import named_parameters
from niwaki.core.space import SearchSpace
from niwaki.criteria.contributions import ShareSums, shares_in_convolution, shares_in_product
from niwaki.errors import MethodError

aten = torch.ops.aten
_PRODUCTS: Mapping[Any, tuple[int, int]] = {  # the positions of the two factors among the arguments
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
}


View = tuple[int, tuple[tuple[int, int], ...]]  # an offset, and sizes with steps
Reader = tuple[tuple[str, int], View]  # a dimension of a parameter, and the part of it that reads


class ParameterOwners:
    """Which parameter of a model a factor of a product is."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(named_parameters(model))
        self._at = {value.untyped_storage().data_ptr(): name for name, value in self._parameters.items()}

    def __call__(self, factor: Tensor, dim: int) -> tuple[str, int] | None:
        """The parameter that ``factor`` is or is a view of, and the parameter's dimension at ``dim`` of ``factor``."""
        if factor.layout is not torch.strided:
            return None
        name = self._at.get(factor.untyped_storage().data_ptr())
        if name is None:
            return None
        whole = self._parameters[name]
        same = [
            d
            for d in range(whole.dim())
            if (whole.stride(d), whole.shape[d]) == (factor.stride(dim), factor.shape[dim])
        ]
        return (name, same[0]) if len(same) == 1 else None


class ActivationObserver(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered: sums the activations of the units of ``space``, per batch.

    Below autograd every layer is one of a few operators that contract an activation with a parameter (or a view of it).
    The contracted dimension of the parameter identifies the units in the activation: the search space has their
    positions. So no layer needs a hook, and no table of layers is needed. Grouped convolutions are not observed: a
    later operator reads the same units.
    """

    def __init__(self, space: SearchSpace, like: Tensor, *, energy: bool, share: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._space, self._like, self._with_energy, self._with_share = space, like, energy, share
        self._owner = ParameterOwners(space.model)
        self._owned: dict[tuple[str, int], list[tuple[int, Tensor]]] = {}
        for group in space.groups:
            for piece in group.slices:
                index = torch.from_numpy(piece.index)
                self._owned.setdefault((piece.tensor, piece.dim), []).append((group.first, index))
        self._active, self._energy, self._reads = like.new_zeros(3, space.num_units)
        self._shares: dict[Reader, ShareSums] = {}
        self._given, self._batches = like.new_zeros(space.num_units), 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for values, key, view, shares in read_by(func, args, self._owner):
            owned = self._owned.get(key, ())
            for first, index in owned:
                self._add(values, first, index)
            if owned and self._with_share:
                reader, found = (key, view), shares()
                self._shares[reader] = self._shares[reader] + found if reader in self._shares else found
        return func(*args, **(kwargs or {}))

    def _add(self, values: Tensor, first: int, index: Tensor) -> None:
        """Add ``values`` [positions, samples, places]; ``index`` [units, K]: the positions of the units from ``first``
        on."""
        units, width = index.shape
        dtype = torch.promote_types(values.dtype, self._like.dtype) if values.is_complex() else self._like.dtype
        own = values.detach().index_select(0, index.reshape(-1).to(values.device)).to(self._like.device, dtype)
        own = own.reshape(units, width, *values.shape[1:]).transpose(1, 2).flatten(2)  # [units, samples, K * places]
        numbers = slice(first, first + units)
        self._active[numbers] += own.abs().mean((1, 2))
        self._reads[numbers] += 1
        if self._with_energy:
            self._energy[numbers] += torch.linalg.svdvals(own).sum(1) if own.shape[2] > 1 else own.norm(dim=(1, 2))

    def fields(self) -> dict[str, Tensor]:
        """``active``, ``energy`` and ``share`` [num_units]. A structure has the mean of the units inside of it; one
        without units has the mean of all. The first two are of what ran since the last call, means over all reads.
        Shares are of all that ran so far, as what has to be added to the earlier answers so that the mean of all
        answers is theirs: means and deviations are over all samples, however they are divided into batches.

        Raises:
            MethodError: no activations of some group were observed.
        """
        groups = self._space.width_groups
        unseen = [group.name for group in groups if not bool(self._reads[group.numbers].all())]
        if unseen:
            raise MethodError(
                f"No matrix product or convolution read units of {len(unseen)} of the "
                f"{len(groups)} groups, first {unseen[0]!r}, so their activations are not known. loss_fn "
                "must run the model's own parameters (no copy of them, no autocast); or choose a criterion that needs "
                "no activations."
            )
        reads = self._reads.clamp(min=1)
        found = {name: total / reads for name, total in (("active", self._active), ("energy", self._energy))}
        self._batches += 1
        found["share"] = self._batches * self._mean_shares() - self._given
        self._given = self._given + found["share"]
        self._active, self._energy, self._reads = self._like.new_zeros(3, self._space.num_units)
        return {name: self._of_structures(values) for name, values in found.items()}

    def _mean_shares(self) -> Tensor:
        """The shares of the units in all samples so far, means over their readers, [num_units]."""
        total, readers = self._like.new_zeros(2, self._space.num_units)
        for (key, _), sums in self._shares.items():
            share = sums.shares()
            for first, index in self._owned[key] if sums.samples else ():
                numbers = slice(first, first + len(index))
                total[numbers] += share[index.to(share.device)].sum(1).to(total)
                readers[numbers] += 1
        mean: Tensor = total / readers.clamp(min=1)
        return mean

    def _of_structures(self, values: Tensor) -> Tensor:
        """``values`` [num_units] of units, and for each structure the mean over those that it has inside."""
        units = structure_units(self._space)
        if self._space.erasures is None or not units:
            return values
        home = homes(self._space, units)
        every = np.isin(np.arange(len(values)), list(units.values()), invert=True)
        for number, unit in units.items():
            inside = every & np.isin(home, [one for one in units if number in self._space.erasures.around(one)])
            values[unit] = values[torch.from_numpy(inside if inside.any() else every).to(values.device)].mean()
        return values


def read_by(
    func: Any, args: tuple[Any, ...], owner: Callable[[Tensor, int], tuple[str, int] | None]
) -> Iterator[tuple[Tensor, tuple[str, int], View, Callable[[], ShareSums]]]:
    """The values that an operator multiplies by a parameter, [positions, samples, places]; the parameter's dimension;
    which part of the parameter it is; and what computes the shares of the positions in the operator's outputs."""
    if func in _PRODUCTS:
        left, right = (args[place] for place in _PRODUCTS[func])
        for values, dim, key in ((left, -1, owner(right, -2)), (right, -2, owner(left, -1))):
            if key is not None:
                both = (left, right) if dim == -1 else (right.mT, left.mT)
                shares = partial(shares_in_product, *both)
                yield values.movedim(dim, 0).flatten(1).unsqueeze(2), key, _view(both[1]), shares
    elif func is aten.convolution.default:
        x, weight, transposed, groups = args[0], args[1], args[6], args[8]
        key = owner(weight, 0 if transposed else 1) if groups == 1 else None
        if key is not None:
            shares = partial(shares_in_convolution, x, weight, args[3:9])
            yield x.movedim(1, 0).flatten(2), key, _view(weight), shares


def _view(part: Tensor) -> View:
    """Which numbers of its storage a view of a parameter has, in whatever arrangement along repeated dimensions."""
    sizes = [(size, step) for size, step in zip(part.shape, part.stride(), strict=True) if step]
    offset: Any = part.storage_offset()
    return int(offset), tuple(sizes)
