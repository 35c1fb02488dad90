"""Hooks of a method: around the steps of its optimizer, in the optimizer's state, and where weights are loaded.

Weights of another size may be loaded into a model that shrinks while it trains: from later or earlier in a run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import wraps
from typing import Any, final
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from niwaki.core.edits import Zeroed
from niwaki.core.names import plain_name
from niwaki.core.space import BoolArray
from niwaki.errors import MethodError, WeightsError
from niwaki.methods.shrinking import LiveSpace
from niwaki.surgery.nonzero import nonzero

_HOOKS = frozenset({"_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_optimizer_state_dict_post_hooks"})


TRACE = "niwaki_method"  # in the first param group of a saved state: the name of the method that was saved with it


def check_optimizer(label: str, optimizer: object) -> None:
    """Raise `MethodError` unless ``optimizer`` is one that calls the hooks of its steps."""
    if not isinstance(optimizer, Optimizer):
        raise MethodError(
            f"optimizer is a {type(optimizer).__qualname__}, but {label} needs a torch.optim.Optimizer: it is attached "
            "to the hooks around its steps. Build one first, such as torch.optim.AdamW(model.parameters())."
        )
    if not (vars(optimizer).keys() >= _HOOKS and _hooked(type(optimizer))):
        raise MethodError(
            f"{type(optimizer).__qualname__} is an optimizer that calls no hooks around its steps, so {label} would "
            "never act: it wraps another one, and its constructor leaves out that of torch.optim.Optimizer. Build the "
            "method with the optimizer inside, before that is wrapped. If the wrapper itself changes weights after "
            "the steps of that one (Lookahead), let its constructor call torch.optim.Optimizer.__init__, and build "
            "the method with the wrapper."
        )


def _hooked(kind: type[Optimizer]) -> bool:
    return bool(getattr(kind.step, "hooked", False))


def _hooked_steps(kind: type[Optimizer]) -> int:
    """How many of the ``step`` methods that a class inherits call hooks: those of an instance may be nested."""
    return sum(bool(getattr(vars(base).get("step"), "hooked", False)) for base in kind.__mro__)


@final
class Nesting:
    """Tells a step from the one inside it. A class whose ``step`` calls that of its parent has its hooks called twice
    as soon as torch has put hooks around both, which it does when any optimizer of the parent's class is built."""

    def __init__(self) -> None:
        self._depth = 0

    def opens(self, optimizer: Optimizer) -> bool:
        """Before a step: is it no part of another? Where more are open than the class has, an error ended the last."""
        inside = self._depth and self._depth < _hooked_steps(type(optimizer))
        self._depth = self._depth + 1 if inside else 1
        return self._depth == 1

    def ends(self) -> None:
        """An error has ended the step, or all that are open."""
        self._depth = 0

    def closes(self) -> bool:
        """After a step: was it no part of another?"""
        if not self._depth:
            return False
        self._depth -= 1
        return self._depth == 0


@final
class StateHooks:
    """Hooks around an optimizer's ``state_dict`` and ``load_state_dict``: those that torch's own methods call, and the
    same around methods that its class has in their place, which may call none (bitsandbytes).

    ``save`` is given the optimizer and what is saved, and puts ``key`` there; ``check`` them and what is to be loaded;
    ``load`` the optimizer, once that is loaded. Where a method calls torch's, ``check`` and ``load`` are called twice.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        key: str,
        save: Callable[[Optimizer, dict[str, Any]], None],
        check: Callable[[Optimizer, dict[str, Any]], None],
        load: Callable[[Optimizer], None],
    ) -> None:
        self._optimizer, self._key, self._save, self._check, self._load = optimizer, key, save, check, load
        self._handles = [
            optimizer.register_state_dict_post_hook(save),
            optimizer.register_load_state_dict_pre_hook(check),
            optimizer.register_load_state_dict_post_hook(load),
        ]
        self._wrapped = {
            name: wrap(getattr(optimizer, name))
            for name, wrap in (("state_dict", self._saving), ("load_state_dict", self._loading))
            if getattr(type(optimizer), name) is not getattr(Optimizer, name)
        }
        self._before = {name: vars(optimizer)[name] for name in self._wrapped if name in vars(optimizer)}
        vars(optimizer).update(self._wrapped)

    def remove(self) -> None:
        """Let go of the optimizer."""
        for handle in self._handles:
            handle.remove()
        for name, wrapper in self._wrapped.items():
            if vars(self._optimizer).get(name) is wrapper:  # nobody has put another around it
                del vars(self._optimizer)[name]
                vars(self._optimizer).update({name: self._before[name]} if name in self._before else {})
        self._handles, self._wrapped = [], {}

    def _saving(self, own: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        @wraps(own)
        def state_dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
            found = own(*args, **kwargs)
            if self._handles and self._key not in found:
                self._save(self._optimizer, found)
            return found

        return state_dict

    def _loading(self, own: Callable[..., None]) -> Callable[..., None]:
        @wraps(own)
        def load_state_dict(state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            if self._handles:
                self._check(self._optimizer, state_dict)
            own(state_dict, *args, **kwargs)
            if self._handles:
                self._load(self._optimizer)

        return load_state_dict


def leave_trace(state_dict: MutableMapping[str, Any], name: str) -> None:
    """In a state about to be saved: that it is a method's too. torch loads param groups with all that is in them."""
    if state_dict["param_groups"]:
        state_dict["param_groups"][0][TRACE] = name


def take_trace(optimizer: Optimizer) -> str | None:
    """What `leave_trace` left, if a state was loaded into ``optimizer``; then it is gone."""
    found = [group.pop(TRACE) for group in optimizer.param_groups if TRACE in group]
    return str(found[0]) if found else None


def warn_of_trace(label: str, optimizer: Optimizer) -> None:
    """Warn if ``optimizer`` loaded, before its method was built, a state in which one was."""
    trace = take_trace(optimizer)
    if trace is not None:
        warnings.warn(
            f"The optimizer's state was loaded before {label} was built, from a checkpoint in which a method was "
            f"({trace!r}). What that one had done is not known any more, and {label} begins with step 1. To go on "
            "where the checkpoint was made, build the method first, as it was then, and load the optimizer's state "
            "afterwards.",
            stacklevel=5,
        )


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

    def __init__(self, model: nn.Module, live: LiveSpace) -> None:
        self._model, self._live = model, live
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
        differs = self._differs(self._live.shapes(here)) if self._waiting else None
        if differs is not None and (here != self._live.here).any():
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
        dims = self._live.dims.get(name, set())
        return len(there) == len(here) and all(there[dim] == here[dim] or dim in dims for dim in range(len(here)))

    def _cut(self, given: dict[str, Tensor], size: str) -> dict[str, Tensor]:
        """Weights of a larger model, without the units that have left since."""
        there = self._live.when({name: tuple(value.shape) for name, value in given.items()})
        if there is None:
            raise WeightsError(
                f"These weights are of a model that had not shrunk as far, {size}, and it is not known any more which "
                "units they have. Nothing was loaded. Load weights from after the last time that the model shrank."
            )
        left = self._live.since(there)
        found = nonzero(given, left.edits_of(Zeroed))
        if found is not None:
            raise WeightsError(
                f"These weights are from before the model shrank, {size}, and {len(found.units)} of the "
                f"{int((there & ~self._live.here).sum())} units that have left since are not zero in them: {found}. "
                "Without these units they would compute something else, so nothing was loaded. Select checkpoints only "
                "from steps where method.done is true (with load_best_model_at_end: eval_delay=schedule.until), as "
                "docs/ema_and_checkpoints.md shows."
            )
        return {name: left.change_of(name).of(value) for name, value in given.items()}


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
