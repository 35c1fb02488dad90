"""Gates of terms that no parameters make: numbers that what such a term is multiplied by, from 1 (there) to 0 (gone).

A pooled picture or a shortcut has no weights that a method could score or drive to zero. Its gate stands for them: the
gradient of the loss by the gate is the sum of the term times its own gradient, as for a weight of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from niwaki.core.edits import EraseModules, GatedEdit
from niwaki.core.names import named_modules
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError


@final
class TermGates:
    """The gates of a search space: one for each structure that can be erased and that no parameters make, or not alone.

    While they are attached to the model, `values` [gates] multiply these terms, and get gradients as parameters do. A
    term in several structures is multiplied by the gates of all. They are not among the parameters of the model.

    A copy of a model with gates attached, such as `copy.deepcopy` or `niwaki.cut` makes, and one that has been pickled,
    computes on with the gates as they were: gates of its own, which nothing changes any more.

    Args:
        space: made with ``erase=True``.
        structures: the numbers of structures in ``space.structures``; only these get gates, if they need any. The
            attribute has those that did.

    Example:
        >>> import niwaki, torch
        >>> from niwaki.per_unit.gates import TermGates
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)
        ...         self.pool = torch.nn.AvgPool1d(3, 1, 1)
        ...     def forward(self, x):
        ...         x = self.a(x)
        ...         return self.b(x) + self.pool(x)
        >>> model, x = Net(), torch.randn(2, 4)
        >>> gates = TermGates(niwaki.search_space(model, x, erase=True))
        >>> gates.names
        ('pool',)
        >>> with gates.attached(model):
        ...     model(x).sum().backward()
        >>> torch.allclose(gates.values.grad, model.pool(model.a(x)).sum())
        True
    """

    def __init__(self, space: SearchSpace, structures: Collection[int] | None = None) -> None:
        self.structures: tuple[int, ...] = ()
        self._edits: list[GatedEdit] = []
        for number, one in enumerate(space.structures):
            asked = structures is None or number in structures
            if asked and space.erasures is not None and one.erasable and one.gated:
                for edit in space.erasures.edits([number]):
                    if isinstance(edit, GatedEdit) and edit.is_gated:
                        self.structures += (number,)
                        self._edits.append(edit)
        self.names = tuple(space.structures[number].name for number in self.structures)
        self.values = nn.Parameter(torch.ones(len(self.structures)))
        self._undoing: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self.structures)

    def attach(self, model: nn.Module) -> None:
        """Let the gates multiply their terms in ``model``, the one of the search space or a copy of it, on whose device
        they are from then on.

        Raises:
            MethodError: they are attached already.
            PlanError: it is another model.
        """
        modules = dict(named_modules(model))
        for edit in self._edits:
            edit.check_model(modules)
        device = next((one.device for one in model.parameters() if not one.is_meta), self.values.device)
        self.values.data = self.values.data.to(device)
        self.attach_to(modules)

    def attach_to(self, modules: Mapping[str, nn.Module], which: Collection[int] | None = None) -> None:
        """The same in a model of these ``modules`` by path, which may have left it since; ``which``: only these of the
        gates, by their place.

        Raises:
            MethodError: they are attached already.
        """
        if self._undoing:
            raise MethodError("These gates are attached to a model already. Call detach() first.")
        try:
            for edit, places in self._in_one(range(len(self)) if which is None else which):
                self._undoing.append(edit.gate(modules, _Gate(self, places)))
        except BaseException:
            self.detach()
            raise

    def _in_one(self, which: Collection[int]) -> Iterator[tuple[GatedEdit, tuple[int, ...]]]:
        """What is multiplied by the gates of several structures at once: each term, and not each structure."""
        by_path: dict[str, list[int]] = {}
        for place in which:
            edit = self._edits[place]
            if not isinstance(edit, EraseModules):
                yield edit, (place,)
                continue
            for path in edit.gated:
                by_path.setdefault(path, []).append(place)
        for path, places in by_path.items():
            edit = self._edits[places[0]]
            assert isinstance(edit, EraseModules)
            yield replace(edit, gated=(path,)), tuple(places)

    def detach(self) -> None:
        """Leave the model as it was, whatever the values of the gates; nothing where they are not attached."""
        while self._undoing:
            self._undoing.pop()()

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Attach them to ``model`` inside."""
        self.attach(model)
        try:
            yield
        finally:
            self.detach()

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not attached to what the original is attached to."""
        return {**self.__dict__, "_undoing": []}


@dataclass(frozen=True, slots=True, eq=False)
class _Gate:
    """Multiplies a tensor by gates."""

    gates: TermGates
    numbers: tuple[int, ...]

    def __call__(self, result: Tensor) -> Tensor:
        factor = self.gates.values[self.numbers[0]]
        for number in self.numbers[1:]:
            factor = factor * self.gates.values[number]
        return result * factor.to(result)
