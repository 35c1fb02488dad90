"""Weights of another size, loaded into a model that shrinks while it trains: from later or earlier in a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from niwaki.core.names import plain_name
from niwaki.core.space import BoolArray
from niwaki.errors import MethodError, WeightsError
from niwaki.methods.shrinking import Remains
from niwaki.surgery.cut import kept
from niwaki.surgery.nonzero import nonzero

Shape = tuple[int, ...]
# No copy of a model is in it, and it keeps neither a model nor a method alive.
_WATCHED: WeakKeyDictionary[nn.Module, WeakSet[WeightLoading]] = WeakKeyDictionary()


class WeightLoading:
    """What happens, for as long as a method is attached, when weights of another size are loaded into ``model``.

    Smaller ones are of a model that had shrunk further. Trainers load a model before its optimizer, whose state alone
    says which units are left. So they wait: `complete` loads them when the optimizer's state has brought the model to
    size. Until then a forward pass or a step of the optimizer is refused, and for ever one of a copy made meanwhile.

    Larger ones are of a model that had not shrunk as far, such as the best checkpoint of the run. They are cut while
    they are loaded if the units that have left since are zero in them, and refused otherwise.
    """

    def __init__(self, model: nn.Module, remains: Remains) -> None:
        self._model, self._remains = model, remains
        self._waiting: dict[str, Tensor] = {}
        self._guard: RemovableHandle | None = None  # while weights wait
        # A function of a module, so that a copy or a pickle of the model takes it along without what it does.
        self._handle: RemovableHandle = model.register_load_state_dict_pre_hook(_adapt)  # type: ignore[no-untyped-call]
        _WATCHED.setdefault(model, WeakSet()).add(self)

    def remove(self) -> None:
        """Let go of the model; weights that wait are forgotten."""
        self._handle.remove()
        _WATCHED[self._model].discard(self)
        self._wait_for({})

    def refuse(self) -> None:
        """Raise `MethodError` while weights wait."""
        if self._waiting:
            raise MethodError(
                "The weights that were loaded into this model are of one that had shrunk further. They wait for the "
                "state of its optimizer, which says which units they belong to, and the model is still as it was "
                "before. Load that from the same checkpoint, optimizer.load_state_dict(...), into the optimizer that "
                "the method is attached to; or load weights of the dense model instead."
            )

    def check(self, here: BoolArray) -> None:
        """Raise `MethodError` if the state of an optimizer that is about to bring the model to the units ``here``
        [num_units] is not that of the weights which wait. One that leaves the model as it is may be another: accelerate
        loads an optimizer's own state into it when it is prepared."""
        differs = self._differs(self._remains.shapes(here)) if self._waiting else None
        if differs is not None and (here != self._remains.here).any():
            raise MethodError(
                "The weights that were loaded before do not belong to this state of the optimizer: in them "
                f"{differs!r} has another shape than in the model that it was saved with. Load both from the same "
                "checkpoint."
            )

    def _differs(self, shapes: Mapping[str, Shape]) -> str | None:
        """The first of the weights that wait whose shape is another."""
        for name, value in self._waiting.items():
            if shapes.get(plain_name(name), value.shape) != value.shape:
                return name
        return None

    @torch.no_grad()
    def complete(self) -> None:
        """Load the weights that wait into the model, if it has their size by now."""
        here = dict(_tensors(self._model))
        if self._differs({plain_name(name): tensor.shape for name, tensor in here.items()}) is not None:
            return
        for name, value in self._waiting.items():
            here[name].copy_(value)
        self._wait_for({})

    def adapt(self, state: dict[str, Any], prefix: str) -> None:
        """Change weights about to be loaded, whose names begin with ``prefix``, so that they fit the model."""
        here, first = dict(_tensors(self._model)), _first_names(self._model)
        given = {name: state[prefix + name] for name in here if isinstance(state.get(prefix + name), Tensor)}
        other = [name for name, value in given.items() if value.shape != here[name].shape]
        if not all(self._may_shrink(first[name], given[name].shape, here[name].shape) for name in other):
            return  # weights of another network: torch says what is wrong
        differences = [a - b for name in other for a, b in zip(given[name].shape, here[name].shape, strict=True)]
        if not other:
            self._wait_for({name: value for name, value in self._waiting.items() if name not in given})
        elif max(differences) <= 0:
            self._wait_for(self._waiting | {name: value.detach().clone() for name, value in given.items()})
            state.update((prefix + name, here[name]) for name in given)  # loading these changes nothing
        elif min(differences) >= 0:
            name = other[0]
            size = f"{name!r} is {list(given[name].shape)} there and {list(here[name].shape)} here"
            smaller = self._cut({first[name]: value for name, value in given.items()}, size)
            state.update((prefix + name, smaller[first[name]]) for name in given)

    def _wait_for(self, weights: dict[str, Tensor]) -> None:
        if bool(weights) != bool(self._waiting):
            if self._guard is not None:
                self._guard.remove()
            self._guard = self._model.register_forward_pre_hook(_refuse_forward) if weights else None
        self._waiting = weights

    def _may_shrink(self, name: str, there: Shape, here: Shape) -> bool:
        """Whether two shapes of a tensor differ only in dimensions that units can leave."""
        dims = self._remains.dims.get(name, set())
        return len(there) == len(here) and all(there[dim] == here[dim] or dim in dims for dim in range(len(here)))

    def _cut(self, given: dict[str, Tensor], size: str) -> dict[str, Tensor]:
        """Weights of a larger model, without the units that have left since."""
        there = self._remains.when({name: tuple(value.shape) for name, value in given.items()})
        if there is None:
            raise WeightsError(
                f"These weights are of a model that had not shrunk as far, {size}, and it is not known any more which "
                "units they have. Nothing was loaded. Load weights from after the last time that the model shrank."
            )
        left = self._remains.since(there)
        found = nonzero(given, left.zeroed_by_method)
        if found is not None:
            raise WeightsError(
                f"These weights are from before the model shrank, {size}, and {len(found.units)} of the "
                f"{int((there & ~self._remains.here).sum())} units that have left since are not zero in them: {found}. "
                "Without these units they would compute something else, so nothing was loaded. Select checkpoints only "
                "from steps where method.done is true (with load_best_model_at_end: eval_delay=schedule.until), as "
                "docs/ema_and_checkpoints.md shows."
            )
        repairs = {repair.tensor: repair for repair in left.repairs}
        smaller = {name: kept(value, left.tensors.get(name, {})) for name, value in given.items()}
        return {name: repairs[name].of(value) if name in repairs else value for name, value in smaller.items()}


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers under all their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _first_names(model: nn.Module) -> dict[str, str]:
    """The name that the search space knows a tensor by, for each of its names."""
    first: dict[Tensor, str] = {}
    return {name: first.setdefault(tensor, plain_name(name)) for name, tensor in _tensors(model)}


def _adapt(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for loading in list(_WATCHED.get(model, ())):
        loading.adapt(state, prefix)


def _refuse_forward(model: nn.Module, *_: Any) -> None:
    if model not in _WATCHED:
        raise MethodError(
            "This is a copy of a model whose weights were waiting for the state of their optimizer, and it has those "
            "from before they were loaded. Copy or cut the model after optimizer.load_state_dict(...)."
        )
    for loading in _WATCHED[model]:
        loading.refuse()
