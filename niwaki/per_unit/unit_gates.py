"""Gates of units that carry gradients: a number for each unit, which what it computes is multiplied by.

A linear reader of x multiplies by W: W (g x) = (W g) x, so that the gate of a unit is a factor of the *weights that
read it*, and no hook is needed: `torch.func.functional_call` runs the model with these. Where a unit enters a mean over
its group (RMSNorm) its readers come too late, and the weights that *write* it are multiplied instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.counts import BoolArray
from niwaki.core.names import plain_name
from niwaki.core.space import Group, SearchSpace
from niwaki.core.tensor_dims import Slice, TensorDim
from niwaki.errors import MethodError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class GatedDim:
    """Position i of dimension ``dim`` of the parameter ``name`` is multiplied by the gates of ``units[i]`` [n, K],
    padded with the number of units, whose gate is 1."""

    name: str
    dim: int
    units: Tensor

    def factor(self, gates: Tensor) -> Tensor:
        """What each position is multiplied by under ``gates`` [num_units + 1], [n]."""
        return gates[self.units.to(gates.device)].prod(1)

    def multiplied(self, weight: Tensor, gates: Tensor) -> Tensor:
        """``weight`` under ``gates`` [num_units + 1]."""
        factor = self.factor(gates).to(weight)
        shape = [1] * weight.dim()
        shape[self.dim] = -1
        return weight * factor.view(shape)


class Gates(Protocol):
    """What masks are learnt with and trained under: `UnitGates`, or gates of some of its units."""

    def value(self, gates: Tensor, function: Callable[[nn.Module], T]) -> T:
        """As `UnitGates.value`."""

    def zeroed(self, mask: Tensor, function: Callable[[nn.Module], T]) -> T:
        """As `UnitGates.zeroed`."""

    def gradient(self, gates: Tensor, function: Callable[[nn.Module], Tensor]) -> tuple[Tensor, Tensor | None]:
        """As `UnitGates.gradient`."""

    def applied(self, gates: Tensor) -> AbstractContextManager[None]:
        """As `UnitGates.applied`."""

    @property
    def inside(self) -> bool:
        """As `UnitGates.inside`."""


class UnitGates:
    """The gates of the units of ``space`` in the parameters of its model, which keep their values and their gradients.

    Gates [num_units] are 1 for a unit that is there and 0 for one that is not. With gates of 0 and 1 the model computes
    what it would with these units at zero, which is what their cut computes; with any others, what it would if the
    units were multiplied by them where they are read. (Under a weight norm a reader can only be gated at its weight as
    it is: gates between 0 and 1 are a straight way between the two networks then.) Where a parameter writes and reads
    the same units, as a table of embeddings that is also the head, gates of 0 need not be what the cut is:
    `niwaki.masks.gate_check.check_gates` compares the two, and methods refuse such a network.

    Raises:
        MethodError: nothing reads the units of a group linearly, as in the products of queries and keys.

    >>> import niwaki
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> x = torch.randn(3, 4)
    >>> gates = UnitGates(niwaki.search_space(model, x))
    >>> half = gates.value(torch.full((10,), 0.5), lambda model: model(x))
    >>> torch.allclose(half, model[2](model[:2](x) * 0.5))
    True
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space, self._inside = space, False
        names = {plain_name(name): name for name, _ in space.model.named_parameters()}

        def gated(whole: TensorDim, of: BoolArray) -> GatedDim:
            units = np.where(np.append(of, False)[whole.units], whole.units, space.num_units)
            return GatedDim(names[whole.tensor], whole.dim, torch.from_numpy(units))

        averaged = averaged_units(space)
        read, written = np.zeros(space.num_units, dtype=bool), np.zeros(space.num_units, dtype=bool)
        for group in space.width_groups:
            (written if averaged[group.numbers].any() else read)[group.numbers] = True
        writing = {(piece.tensor, piece.dim) for group in space.width_groups for piece in writers_of(space, group)}
        dims = [whole for whole in space.dims if whole.parameter]
        self._gated = [gated(whole, read) for whole in dims if whole.role.consumes]
        self._gated += [gated(whole, written) for whole in dims if (whole.tensor, whole.dim) in writing]
        self._gated = [one for one in self._gated if bool((one.units < space.num_units).any())]
        self._zeroed = [gated(whole, read | written) for whole in dims if whole.role.zeroed_by_method]
        self._check_all(np.concatenate([np.zeros(0, np.int64), *(one.units.numpy().ravel() for one in self._gated)]))

    def _check_all(self, gated: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        has = np.bincount(gated, minlength=self._space.num_units + 1)[:-1] > 0
        for group in self._space.width_groups:
            if not has[group.numbers].all():
                raise MethodError(
                    f"The group {group.name!r} cannot have gates: nothing reads its units linearly, so that no weight "
                    f"can be multiplied by them. Its units are {', '.join(str(piece) for piece in group.slices[:4])}"
                    f"{', ...' if len(group.slices) > 4 else ''}. Pin it with `ignored` when you build the search "
                    "space, or use a method that scores units (niwaki.HESSO)."
                )

    def value(self, gates: Tensor, function: Callable[[nn.Module], T]) -> T:
        """What ``function(model)`` returns for the model under ``gates`` [num_units]."""
        return self._run(self._gated, gates, function)

    def zeroed(self, mask: Tensor, function: Callable[[nn.Module], T]) -> T:
        """The same for the model with all that makes units of a ``mask`` [num_units] of 0 and 1 at zero: the reference
        that gates are compared with."""
        return self._run(self._zeroed, mask, function)

    @property
    def inside(self) -> bool:
        """Whether the model is in a block of `applied` now, and holds other tensors than its parameters."""
        return self._inside

    @contextmanager
    def applied(self, gates: Tensor) -> Iterator[None]:
        """Inside, the model itself computes as under ``gates`` [num_units], and a backward pass reaches its parameters,
        and the gates if they have gradients.

        It holds other tensors in their place inside. They are put back at the end, also after an error. What
        recomputes activations in the backward pass, as checkpoints do, has to be inside too.

        Raises:
            MethodError: it is inside of such a block already.
        """
        if self._inside:
            raise MethodError("The model is under gates already: a block with its gates cannot be inside of another.")
        extended = torch.cat([gates, gates.new_ones(1)])
        parameters = dict(self._space.model.named_parameters())
        gated: dict[int, Tensor] = {}
        for one in self._gated:
            parameter = parameters[one.name]
            gated[id(parameter)] = one.multiplied(gated.get(id(parameter), parameter), extended)
        held = [
            (module._parameters, key, parameter)
            for module in self._space.model.modules()
            for key, parameter in module._parameters.items()
            if parameter is not None and id(parameter) in gated
        ]
        self._inside = True
        try:
            for own, key, parameter in held:
                own[key] = gated[id(parameter)]  # type: ignore[assignment]  # as torch.func.functional_call does
            yield
        finally:
            for own, key, parameter in held:
                own[key] = parameter
            self._inside = False

    def factors(self, gates: Tensor) -> Iterator[tuple[str, int, Tensor]]:
        """What ``gates`` [num_units] multiply parameters by: the name of each, a dimension, and a factor for each of
        its positions."""
        extended = torch.cat([gates, gates.new_ones(1)])
        yield from ((plain_name(one.name), one.dim, one.factor(extended)) for one in self._gated)

    def gradient(self, gates: Tensor, function: Callable[[nn.Module], Tensor]) -> tuple[Tensor, Tensor | None]:
        """The scalar that ``function(model)`` returns under ``gates``, and its gradient by them [num_units]: None if it
        does not depend on them. No gradient of a parameter is touched, nor computed.

        The gradient is taken inside of the call, since activation checkpoints run the model a second time then.
        """

        def both(model: nn.Module) -> tuple[Tensor, Tensor | None]:
            loss = function(model)
            if not (isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1):
                return loss, None
            (found,) = torch.autograd.grad(loss.reshape(()), leaf, allow_unused=True)
            return loss.detach(), found

        with torch.enable_grad():
            leaf = gates.detach().requires_grad_()
            return self._run(self._gated, leaf, both)

    def _run(self, gated: Sequence[GatedDim], gates: Tensor, function: Callable[[nn.Module], T]) -> T:
        holder = _Holder(self._space.model, function)
        weights = {name: parameter.detach() for name, parameter in self._space.model.named_parameters()}
        extended = torch.cat([gates, gates.new_ones(1)])
        for one in gated:
            weights[one.name] = one.multiplied(weights[one.name], extended)
        found: T = torch.func.functional_call(holder, {f"model.{name}": value for name, value in weights.items()}, ())
        return found


class _Holder(nn.Module, Generic[T]):
    """Gives a function the model that it was built with, while `torch.func.functional_call` has replaced its
    parameters."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module], T]) -> None:
        super().__init__()
        self.model, self._function = model, function
        self.training = model.training

    def forward(self) -> T:
        """Whatever the function returns."""
        return self._function(self.model)


def averaged_units(space: SearchSpace) -> BoolArray:
    """The units [num_units] whose number enters a mean, so that a cut has to repair it (RMSNorm)."""
    repairs = space.repairs
    factors = [*(rule.factors for rule in repairs.tensors), *(rule.factors for rule in repairs.scalars)]
    axes = {factor.axis for some in factors for factor in some}
    return space.cost_model.counts.depending(axes)


def writers_of(space: SearchSpace, group: Group) -> Iterator[Slice]:
    """The parameters that write the units of a ``group`` which enter a mean, not those that scale them behind it.

    Matrices that produce the units, and the vectors beside them in the same module: biases.
    """
    if not averaged_units(space)[group.numbers].any():
        return
    shapes = {shape.name: shape.shape for shape in space.shapes}
    repaired = {rule.tensor for rule in space.repairs.tensors}
    produce = [p for p in group.slices if p.parameter and p.role.produces and p.tensor not in repaired]
    vectors = [piece for piece in produce if len(shapes[piece.tensor]) == 1]
    matrices = [piece for piece in produce if math.prod(shapes[piece.tensor]) > shapes[piece.tensor][piece.dim]]
    modules = {piece.tensor.rpartition(".")[0] for piece in matrices}
    yield from matrices
    yield from (piece for piece in vectors if piece.tensor.rpartition(".")[0] in modules)
