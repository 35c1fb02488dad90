"""Criteria of structures that are measured by running the network without them, or with weights drawn anew.

Such a criterion says nothing of units that only make layers narrower: they have 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from niwaki.core.edits import EraseExperts
from niwaki.core.names import named_modules
from niwaki.core.space import Group, SearchSpace
from niwaki.criteria.observe import ParameterOwners, read_by
from niwaki.criteria.registry import criterion
from niwaki.criteria.routed import RoutedTokens
from niwaki.errors import MethodError
from niwaki.per_unit.gates import TermGates
from niwaki.per_unit.index import scored_parameters
from niwaki.per_unit.sums import UnitSums
from niwaki.trace.eager import eagerly

_MOST_ROWS = 4096  # of features that are compared


@criterion("cka", reads=("changed",))
def cka(unit: UnitSums) -> Tensor:
    """1 - CKA of the features that the last layer reads, with the structure and without it (arXiv 2405.17081).

    CKA is ||Y'X||^2 / (||X'X|| ||Y'Y||) of centred features X and Y [samples, features]: 1 if they are the same up to a
    rotation and a factor, which another last layer could make up for.
    """
    return unit.changed


@criterion("reinitialised", reads=("worse",))
def reinitialised(unit: UnitSums) -> Tensor:
    """How much larger the loss is with the weights of the structure drawn anew (SR-init, arXiv 2303.07677), 0 where it
    is not.

    Weights of two or more dimensions are drawn as those of torch's layers are at first, uniform within 1 / sqrt(number
    of inputs); biases and norms stay. (SR-init looks at the accuracy.)
    """
    return unit.worse


class Absence:
    """Runs the model of ``space`` without each structure, or with other weights in it. ``reads``: the fields that the
    criteria need; ``like`` [num_units]: a tensor of the device and type that they shall have."""

    def __init__(self, space: SearchSpace, reads: Collection[str], seed: int, like: Tensor) -> None:
        self._space, self._reads, self._seed, self._like = space, reads, seed, like
        self._parameters = scored_parameters(space)
        self._groups = [group for group in space.groups if group.structure is not None]
        self._routed = RoutedTokens(space, like) if "routed" in reads else None
        if not self._groups:
            name = "cka" if "changed" in reads else "reinitialised"
            raise MethodError(
                f"The criterion {name!r} is for structures, of which this space has none: build it with "
                "niwaki.search_space(..., erase=True)."
            )

    @torch.no_grad()
    def fields(self, loss: Callable[[], Tensor], count: int) -> dict[str, Tensor]:
        """``changed``, ``worse`` and ``routed`` [num_units], as far as they are wanted, for batch number ``count``."""
        found: dict[str, Tensor] = {}
        if "changed" in self._reads:
            found["changed"], whole = torch.zeros_like(self._like), self._features(loss)
            for group in self._groups:
                with self._without(group):
                    found["changed"][group.first] = 1 - _cka(whole, self._features(loss))
        if "worse" in self._reads:
            found["worse"], before = torch.zeros_like(self._like), float(loss())
            for group in self._groups:
                generator = torch.Generator().manual_seed(self._seed + count)
                with self._redrawn(group, generator):
                    found["worse"][group.first] = max(0.0, float(loss()) - before)
        if self._routed is not None:
            found["routed"] = self._routed.field(loss)
        return found

    def _features(self, loss: Callable[[], Tensor]) -> Tensor:
        last = _LastRead(self._space.model)
        with eagerly(), last:
            loss()
        if last.values is None:
            raise MethodError(
                "The criterion 'cka' compares what the last matrix product or convolution reads, and loss_fn ran none "
                "of the model's own parameters. Let it run the model that it is given."
            )
        return last.values

    @contextmanager
    def _without(self, group: Group) -> Iterator[None]:
        """The structure's result is zero: what makes it is, or its gate; no router chooses it, if it is an expert."""
        driven = {piece.tensor: self._parameters[piece.tensor] for piece in group.slices if piece.role.zeroed_by_method}
        assert group.structure is not None
        gates = TermGates(self._space, (group.structure,))
        closed: AbstractContextManager[None] = gates.attached(self._space.model) if len(gates) else nullcontext()
        with _restored(driven), closed, self._unchosen(group.structure):
            for piece in group.slices:
                if piece.parameter and piece.role.zeroed_by_method:
                    weight = self._parameters[piece.tensor]
                    weight.index_fill_(piece.dim, torch.from_numpy(piece.index[0]).to(weight.device), 0)
            gates.values.zero_()
            yield

    @contextmanager
    def _unchosen(self, structure: int) -> Iterator[None]:
        """The router of an expert does not choose it."""
        erasures, undoing = self._space.erasures, list[Callable[[], None]]()
        if erasures is not None and self._space.structures[structure].router is not None:
            modules = dict(named_modules(self._space.model))
            undoing = [edit.mask(modules) for edit in erasures.edits((structure,)) if isinstance(edit, EraseExperts)]
        try:
            yield
        finally:
            for undo in undoing:
                undo()

    @contextmanager
    def _redrawn(self, group: Group, generator: torch.Generator) -> Iterator[None]:
        assert group.structure is not None
        names = self._space.structures[group.structure].parameters
        own = {name: self._parameters[name] for name in names if name in self._parameters}
        slices = [] if own else [piece for piece in group.slices if piece.tensor in self._parameters]  # of an expert
        with _restored(own | {piece.tensor: self._parameters[piece.tensor] for piece in slices}):
            parts = [self._parameters[piece.tensor].select(piece.dim, int(piece.index[0, 0])) for piece in slices]
            for weight in (*own.values(), *parts):
                if weight.dim() > 1:
                    bound = float(weight[0].numel()) ** -0.5
                    drawn = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
                    weight.copy_(((2 * drawn - 1) * bound).to(weight))
            yield


@contextmanager
def _restored(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.detach().copy_(kept[name])


class _LastRead(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered: keeps what the last operator read that multiplies by a parameter, [samples, features]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner = ParameterOwners(model)
        self.values: Tensor | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for values, *_ in read_by(func, args, self._owner):
            rows = values.detach().flatten(1).T[:_MOST_ROWS]
            self.values = rows.abs().double() if rows.is_complex() else rows.double()
        return func(*args, **(kwargs or {}))


def _cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of features [samples, features]; 0 where those of ``y`` are constant, or of another shape."""
    if len(x) != len(y):
        return 0.0
    x, y = x - x.mean(0), y - y.mean(0)
    sizes = float((x.T @ x).norm() * (y.T @ y).norm())
    return float((y.T @ x).norm() ** 2) / sizes if sizes > 0 else float(torch.equal(x, y))
