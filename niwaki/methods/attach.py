"""Attaching a method to an optimizer: step hooks, and state inside the optimizer's own ``state_dict``."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer

from niwaki.core.plan import Plan, structure_hash
from niwaki.core.space import BoolArray, SearchSpace, check_space
from niwaki.core.zeroed import zeroed_by_method
from niwaki.errors import MethodError, PlanError, ShrinkError
from niwaki.methods.checks import check_parameters, damaged
from niwaki.methods.hooks import (
    Nesting,
    StateHooks,
    WeightLoading,
    check_optimizer,
    leave_trace,
    take_trace,
    warn_of_trace,
)
from niwaki.methods.shrinking import LiveSpace, ShrinkPolicy
from niwaki.methods.status import Progress, not_zero, remainder

KEY = "niwaki"
_FORMAT = 1
_attached: WeakKeyDictionary[Optimizer, str] = WeakKeyDictionary()  # the name of its method


class Method(ABC):
    """What happens around each optimizer step. Subclasses say what; how it is attached is decided here, once.

    ``step`` counts the optimizer steps since the method was attached; a step that a gradient scaler skips for its
    infinite gradients does not count. The state lives under ``"niwaki"`` in ``optimizer.state_dict()``, as tensors and
    plain numbers, and loads with it.

    Raises:
        MethodError: the optimizer does not train the parameters of the space, some are frozen, or it has a method
            already.
    """

    name: str
    label: str

    def __init__(self, space: SearchSpace, optimizer: Optimizer, shrinking: bool | ShrinkPolicy = False) -> None:
        check_space(space)
        check_optimizer(self.label, optimizer)
        self.space = space
        self.optimizer = optimizer
        self.step = 0
        self.shrinking = ShrinkPolicy.of(shrinking)
        self.remains = LiveSpace(space)
        self.check_parameters()
        if optimizer in _attached:
            raise MethodError(
                f"This optimizer has a method already ({_attached[optimizer]}). Call its detach() first: two "
                "methods would drive the same units."
            )
        self.closure: Callable[[], Any] | None = None  # what the step at hand was given, while it lasts
        self._loading: Mapping[str, Any] | None = None
        self._nesting = Nesting()
        self._handles: list[Any] = []

    @final
    def attach(self) -> None:
        """Register the hooks; subclasses call it at the end of their constructor."""
        warn_of_trace(self.label, self.optimizer)
        _attached[self.optimizer] = self.name
        eager: Callable[..., Any] = torch.compiler.disable  # where optimizer.step is compiled, the hooks are not
        self._weights = WeightLoading(self.space.model, self.remains)
        self._handles = [
            self.optimizer.register_step_pre_hook(eager(self._pre_step)),
            self.optimizer.register_step_post_hook(eager(self._post_step)),
            StateHooks(self.optimizer, KEY, self._save, self._check_loaded, self._load),
            self._weights,
        ]

    @final
    def detach(self) -> None:
        """Let go of the optimizer. The parameters stay as they are; zeros are no longer kept."""
        if self._handles:
            self.leave()
        for handle in self._handles:
            handle.remove()
        if self._handles:
            del _attached[self.optimizer]
        self._handles = []

    @final
    def shrink(self, ema: Sequence[nn.Module] = ()) -> bool:
        """Let the units that have reached zero for good leave the model now, in place; see `niwaki.shrink`.

        Call it between two steps, after ``optimizer.step()``. `plan` goes on speaking of the dense network, which
        `niwaki.cut`, `niwaki.check` and `niwaki.save` understand. A checkpoint of a model that has been shrunk loads
        into a dense one, with its optimizer's state, in either order: the weights wait until that has shrunk the model.

        Args:
            ema: averaged copies of the model, besides those that the method was given.

        A warning says with figures where units that leave are not zero in the model: their weights were written after
        the step, by a checkpoint from before pruning for instance. What these weights computed is lost.

        Returns:
            Whether anything left.

        Raises:
            ShrinkError: a state of the optimizer cannot follow, or the process is one of several.
        """
        gone = self.gone()
        if not (gone & self.remains.here).any():
            return False
        known = () if self.shrinking is None else tuple(self.shrinking.ema)
        caveat = not_zero(self.label, self.remains.space, gone[self.remains.here])
        with torch.no_grad():
            self.remains.leave(gone, self.optimizer, (*known, *ema))
            self.rebuild()
        if caveat is not None:
            warnings.warn(f"{caveat} The model has been shrunk all the same.", stacklevel=2)
        return True

    @final
    @property
    def done(self) -> bool:
        """Whether the schedule has ended and all that `plan` removes is zero in the model as it is now: only such
        weights, and averages over such weights, are worth selecting. Looks at the weights once the schedule has ended,
        and then waits for the device.

        Example, the best checkpoint::

            if method.done and accuracy > best:
                best = accuracy
                torch.save(model.state_dict(), "best.pt")
        """
        return self.ended() and remainder(self.remains.space, self.zero_units()[self.remains.here]) is None

    @final
    def plan_of_zeros(self, space: SearchSpace, keep: BoolArray, about: dict[str, Any]) -> Plan:
        """The plan that keeps the units ``keep`` [num_units] of ``space`` and knows that a method zeroes the rest, and
        if it has not ended yet."""
        plan = space.plan(keep, about if self.ended() else about | {"ended": False})
        return replace(plan, zeroed_by_method=zeroed_by_method(space, ~keep))

    @abstractmethod
    def ended(self) -> bool:
        """Whether the schedule has ended: nothing will be removed after this."""

    @abstractmethod
    def zero_units(self) -> BoolArray:
        """The units of `plan` that this method has set to zero, [num_units]."""

    @abstractmethod
    def gone(self) -> BoolArray:
        """The units that are zero and will stay so, [num_units], as many as the sizes of the model's code allow."""

    @abstractmethod
    def rebuild(self) -> None:
        """Refer to the tensors of the model as they are now, those of ``remains.space``."""

    @abstractmethod
    def plan(self) -> Plan:
        """The plan that removes what is marked now. Warns where that is not what was asked for."""

    @property
    @abstractmethod
    def progress(self) -> Progress:
        """Where the method stands."""

    @abstractmethod
    def before_step(self, step: int) -> None:
        """What to do before the optimizer's step number ``step`` (the first is 1)."""

    @abstractmethod
    def after_step(self, step: int) -> None:
        """What to do after it."""

    def check_parameters(self) -> None:
        """Raise `MethodError` unless the optimizer trains all that the units are made of."""
        check_parameters(self.space, self.optimizer)

    def leave(self) -> None:  # noqa: B027
        """Before it lets go: take back what was only tried, if there is anything of the kind."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What must be the same when a run is resumed, as plain data."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What changes from step to step, as tensors and plain numbers."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""

    @abstractmethod
    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `ValueError`, `KeyError` or `TypeError` if ``state`` is not what `state` gives; change nothing."""

    def _pre_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._nesting.opens(optimizer):
            return
        try:
            self._weights.refuse()
            self.closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
            with torch.no_grad():
                self.before_step(self.step + 1)
        except BaseException:  # this step ends here, and the next one is not part of it
            self._nesting.ends()
            raise

    def _post_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._nesting.closes():
            return
        # Fused optimizers are called even on overflow and skip the update themselves; a scaler tells them so by this
        # attribute, which exists only during such a call.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is None or not bool(overflow):
            self.step += 1
            with torch.no_grad():
                self.after_step(self.step)
            if self.shrinking is not None and self.remains.pays(self.gone(), self.shrinking):
                self._shrink_or_go_on()
        self.closure = None

    def _shrink_or_go_on(self) -> None:
        """A run of hours must not end because it cannot be made cheaper: what comes of it is the same."""
        try:
            self.shrink()
        except (PlanError, ShrinkError) as cause:
            self.shrinking = None
            warnings.warn(f"{self.name} goes on without shrinking the model. {cause}", stacklevel=5)

    def _save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict[KEY] = {
            "format": _FORMAT,
            "method": self.name,
            "structure": structure_hash(self.space.shapes),
            "settings": self.settings(),
            "step": self.step,
            "state": self.state(),
            **self._shrunk(),
        }
        leave_trace(state_dict, self.name)

    def _shrunk(self) -> dict[str, Any]:
        """For a checkpoint; nothing as long as the model is dense and will be."""
        return {} if self.shrinking is None and self.remains.here.all() else {"remains": self.remains.data()}

    def _check_loaded(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        if KEY not in state_dict:
            raise MethodError(
                f"The optimizer's checkpoint holds no state of {self.name}, which is attached to the optimizer. To "
                f"start {self.name} from a checkpoint made without it, load the checkpoint first and attach afterwards."
            )
        saved = state_dict[KEY]
        here: dict[str, Any] = {
            "format": _FORMAT,
            "method": self.name,
            "structure": structure_hash(self.space.shapes),
            **self.settings(),
        }
        try:
            there = {key: saved[key] for key in ("format", "method", "structure")} | saved["settings"]
        except (KeyError, TypeError) as cause:
            raise damaged(self.name, cause) from cause
        for key in here | there:
            if not _same(here.get(key), there.get(key)):
                raise MethodError(
                    f"The checkpoint was made by {there['method']} with {key} = {there.get(key)!r}, but here it is "
                    f"{here.get(key)!r}. Build the method as it was when the run began, then load."
                )
        try:
            if int(saved["step"]) < 0:
                raise ValueError("its step is negative")
            remains = saved.get("remains", LiveSpace(self.space).data())
            self.remains.check(remains)
            self._weights.check(remains["here"].cpu().numpy())
            self.check_state(saved["state"])
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise damaged(self.name, cause) from cause
        self._loading = saved

    def _load(self, optimizer: Optimizer) -> None:
        take_trace(optimizer)
        if self._loading is not None:
            self.step = int(self._loading["step"])
            if "remains" in self._loading:
                self.remains.restore(self._loading["remains"], () if self.shrinking is None else self.shrinking.ema)
                self.rebuild()
            self.restore(self._loading["state"])
            self._weights.complete()
            self._loading = None


def _same(here: object, there: object) -> bool:
    """Whether two settings are. The rows of saved scores are in the order of the criteria: that counts."""
    if isinstance(here, dict) and isinstance(there, dict):
        return list(here.items()) == list(there.items())
    return here == there
