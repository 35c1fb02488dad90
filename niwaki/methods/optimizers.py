"""What methods need of the optimizer they hang on: hooks around its steps, and a state that is saved with its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, MutableMapping
from functools import wraps
from typing import Any, final

from torch.optim import Optimizer

from niwaki.errors import MethodError

_HOOKS = frozenset({"_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_optimizer_state_dict_post_hooks"})
TRACE = "niwaki_method"  # in the first param group of a saved state: the name of the method that was saved with it


def check_optimizer(label: str, optimizer: object) -> None:
    """Raise `MethodError` unless ``optimizer`` is one that calls the hooks of its steps."""
    if not isinstance(optimizer, Optimizer):
        raise MethodError(
            f"optimizer is a {type(optimizer).__qualname__}, but {label} needs a torch.optim.Optimizer: it hangs on "
            "the hooks around its steps. Build one first, such as torch.optim.AdamW(model.parameters())."
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
