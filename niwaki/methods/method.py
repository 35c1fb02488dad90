"""A method: a selector and an update on the step hooks of an optimizer, with their state in its ``state_dict``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer

from niwaki.core.html import bar_of, html_table
from niwaki.core.plan import Plan, structure_hash
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError, PlanError, ShrinkError
from niwaki.methods.checks import damaged
from niwaki.methods.hooks import (
    Nesting,
    StateHooks,
    WeightLoading,
    leave_trace,
    take_trace,
    warn_of_trace,
)
from niwaki.methods.parts import Selector, Update
from niwaki.methods.schedule import Schedule
from niwaki.methods.shrinking import LiveSpace, ShrinkPolicy
from niwaki.methods.status import Progress, not_ended, not_zero, remainder, warn_of
from niwaki.methods.trained_units import TrainedUnits
from niwaki.selection import STRUCTURES, UNITS, free_note
from niwaki.selection.budget import Budget, provenance, slack_note

KEY = "niwaki"
_FORMAT = 1
_ORGANS = {"after_step", "before_step", "label", "restore", "selector", "settings", "state", "units", "update"}
_attached: WeakKeyDictionary[Optimizer, str] = WeakKeyDictionary()  # the name of its method


class Method:
    """What happens around each optimizer step: a `Selector` says which units leave and when, an `Update` what happens
    to them. All the rest is here, once: hooks, plan, progress, state, shrinking, resume.

    A named method is a subclass that builds its two parts and has nothing else of its own that is not new.

    ``step`` counts the optimizer steps since the method was attached; a step that a gradient scaler skips for its
    infinite gradients does not count. The state lives under ``"niwaki"`` in ``optimizer.state_dict()``, as tensors and
    plain numbers, and loads with it.

    Args:
        units: of the search space of the model that the optimizer trains.
        selector: on these very units.
        update: on these very units.
        shrink: see `ShrinkPolicy`.
        cannot_shrink: why the model cannot be shrunk on the way, as a sentence that says what to do; or nothing.

    Raises:
        MethodError: the optimizer has a method already.
    """

    name: str
    label: str

    def __init__(
        self,
        units: TrainedUnits,
        selector: Selector,
        update: Update,
        shrink: bool | ShrinkPolicy = False,
        cannot_shrink: str = "",
    ) -> None:
        self.units, self.selector, self.update = units, selector, update
        self.optimizer = units.optimizer
        self.step = 0
        self.shrinking = ShrinkPolicy.of(shrink)
        self._cannot_shrink = cannot_shrink
        if self.optimizer in _attached:
            raise MethodError(
                f"This optimizer has a method already ({_attached[self.optimizer]}). Call its detach() first: two "
                "methods would drive the same units."
            )
        self._loading: Mapping[str, Any] | None = None
        self._nesting = Nesting()
        self._handles: list[Any] = []
        self.attach()

    @final
    @property
    def space(self) -> SearchSpace:
        """The search space whose units leave."""
        return self.units.space

    @final
    def attach(self) -> None:
        """Register the hooks, which the constructor has done; again after `detach`."""
        warn_of_trace(self.label, self.optimizer)
        _attached[self.optimizer] = self.name
        eager: Callable[..., Any] = torch.compiler.disable  # where optimizer.step is compiled, the hooks are not
        self._weights = WeightLoading(self.space.model, self.units.live)
        self._handles = [
            self.optimizer.register_step_pre_hook(eager(self._pre_step)),
            self.optimizer.register_step_post_hook(eager(self._post_step)),
            StateHooks(self.optimizer, KEY, self._save, self._check_loaded, self._load),
            self._weights,
        ]
        if self.units.gates is not None:
            try:
                self.units.gates.attach()
            except BaseException:
                self.detach()
                raise

    @final
    @property
    def budget(self) -> Budget | None:
        """What must hold at the end, if anything."""
        return self.selector.target.budget

    @final
    @property
    def schedule(self) -> Schedule:
        """When units leave."""
        return self.selector.schedule

    @final
    def detach(self) -> None:
        """Let go of the optimizer. The parameters stay as they are; zeros are no longer kept. Terms without parameters
        that the method has faded count in full again; a warning names them."""
        if self._handles:
            self.selector.take_back()
            if self.units.gates is not None:
                self.units.gates.let_go(self.label)
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
        Where structures have left, load the optimizer's state first: the names of weights may be others since.

        Args:
            ema: averaged copies of the model, besides those that the method was given.

        A warning says with figures where units that leave are not zero in the model: their weights were written after
        the step, by a checkpoint from before pruning for instance. What these weights computed is lost.

        Returns:
            Whether anything left.

        Raises:
            ShrinkError: a state of the optimizer cannot follow, or the process is one of several.
        """
        if self._cannot_shrink:
            raise MethodError(f"{self.label} cannot shrink the model in place: {self._cannot_shrink}")
        gone, live = self.selector.removable(), self.units.live
        if not (gone & live.here).any():
            return False
        known = () if self.shrinking is None else tuple(self.shrinking.ema)
        caveat = not_zero(self.label, live.space, gone[live.here])
        with torch.no_grad():
            live.leave(gone, self.optimizer, (*known, *ema))
            self.units.rebuild()
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
        live = self.units.live
        return self.selector.ended(self.step) and remainder(live.space, self.selector.zero()[live.here]) is None

    @final
    def plan(self) -> Plan:
        """The plan that removes what the method has chosen so far, or as many of it as the sizes of the model's code
        allow. After ``schedule.until`` steps it meets the budget, and all that it removes is zero. Before, or where
        something is not zero in the model, a warning says so. Where steps are so coarse that more than 1 % is left
        under every limit, ``provenance["tight"]`` says what the next would cost; ``provenance["free"]`` names
        structures that stay since their erasing would save nothing, such as shortcuts under a limit in MACs.

        Raises:
            PlanError: no values of the model's attributes could follow the choice.
        """
        selector, live, target = self.selector, self.units.live, self.selector.target
        missing, ended = selector.shortfall(self.step), selector.ended(self.step)
        if missing is not None:
            missing = not_ended(self.label, self.optimizer, self.step, self.schedule.until, missing)
        warn_of(self.label, missing, live.space, selector.zero()[live.here])
        keep = ~selector.removed()
        about = {"step": self.step, "method": self.name, **selector.settings(), **self.update.settings()}
        if target.budget is not None:
            if (
                ended
                and target.removal is not STRUCTURES
                and (told := slack_note(self.space, keep, target.limits, target.budget))
            ):
                about["tight"] = told
            if ended and target.removal is not UNITS and (told := free_note(self.space, keep, target.limits)):
                about["free"] = told
            about = provenance(self.space, keep, target.budget, **about)
        return self.units.plan(keep, about if ended else about | {"ended": False})

    @final
    @property
    def progress(self) -> Progress:
        """Where the method stands. May wait for the device."""
        phase = self.selector.phase(self.step + 1) or self.update.phase(self.step + 1)
        return self.selector.progress(self.step, phase)

    @final
    def log(self, prefix: str = "niwaki/") -> dict[str, float]:
        """`progress` in numbers, for TensorBoard, W&B or the log of a trainer: the optimizer steps, the fractions of
        MACs and parameters that are left once all marked units are gone, and how many units are marked and zero. May
        wait for the device.

        Args:
            prefix: stands before every name.

        Example::

            for name, value in method.log().items():
                writer.add_scalar(name, value, step)  # TensorBoard
            wandb.log(method.log(), step=step)
        """
        now = self.progress
        values = {
            "step": now.step,
            "macs_left": now.macs,
            "params_left": now.params,
            "units_marked": now.marked,
            "units_zero": now.zero,
        }
        return {prefix + name: float(value) for name, value in values.items()}

    def __dir__(self) -> list[str]:
        """For tab completion: what a user calls, without what parts and checkpoints call."""
        return sorted(set(object.__dir__(self)) - _ORGANS)

    @final
    def __repr__(self) -> str:
        return f"{self.label}: {self.selector.describe(self.progress)}"

    @final
    def _repr_html_(self) -> str:
        now = self.progress
        rows = [
            ("step", now.step, now.phase),
            ("units marked", now.marked, f"of {now.units:,}"),
            ("units at zero", now.zero, bar_of(now.zero / max(now.marked, 1))),
            ("MACs left", f"{now.macs:.1%}", bar_of(now.macs)),
            ("parameters left", f"{now.params:.1%}", bar_of(now.params)),
        ]
        return html_table(repr(self), ("", "", ""), rows)

    @final
    def settings(self) -> dict[str, Any]:
        """What must be the same when a run is resumed, as plain data."""
        return {**self.selector.settings(), **self.update.settings(), **self.selector.target.data}

    @final
    def state(self) -> dict[str, Any]:
        """What changes from step to step, as tensors and plain numbers."""
        of_selector, of_update = self.selector.state(), self.update.state()
        of_selector |= self.units.state()
        shared = sorted(of_selector.keys() & of_update.keys())
        if shared:
            raise MethodError(
                f"The selector and the update of {self.label} both save {shared[0]!r}, so that a checkpoint would hold "
                "one of the two. Give it another name in one of them."
            )
        return of_selector | of_update

    @final
    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave; the zeros themselves are in the model's parameters."""
        self.units.restore(state)
        self.selector.restore(state)
        self.update.restore(state)
        self._settle()

    def _pre_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._nesting.opens(optimizer):
            return
        try:
            self._weights.refuse()
            self.units.closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
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
            if self.shrinking is not None and self.units.live.pays(self.selector.removable(), self.shrinking):
                self._shrink_or_go_on()
        self.units.closure = None
        if self.units.gates is not None:
            self.units.gates.forget()

    @final
    def before_step(self, step: int) -> None:
        """What happens before the optimizer's step number ``step`` (the first is 1), by itself once attached."""
        self.selector.before(step)
        self.update.before(step, self.selector.left(step))

    @final
    def after_step(self, step: int) -> None:
        """What happens after it."""
        self.selector.observe(step)
        self.update.act(step, self.selector.left(step))
        self.selector.choose(step)
        self._settle()

    def _settle(self) -> None:
        """At the end what is closed stays so, and gates of other terms go."""
        if self.units.gates is not None and self.selector.ended(self.step):
            self.units.gates.settle()

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
        live = self.units.live
        return {} if self.shrinking is None and live.here.all() else {"remains": live.data()}

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
            self.units.live.check(remains)
            self._weights.check(remains["here"].cpu().numpy())
            self.units.check_state(saved["state"])
            self.selector.check_state(saved["state"])
            self.update.check_state(saved["state"])
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise damaged(self.name, cause) from cause
        self._loading = saved
        if self.units.live.erases(remains):  # parameters leave the optimizer, which torch compares with what it loads
            with torch.no_grad():
                ema = () if self.shrinking is None else self.shrinking.ema
                self.units.live.restore(remains, ema, self.optimizer)

    def _load(self, optimizer: Optimizer) -> None:
        take_trace(optimizer)
        if self._loading is not None:
            self.step = int(self._loading["step"])
            if "remains" in self._loading:
                ema = () if self.shrinking is None else self.shrinking.ema
                self.units.live.restore(self._loading["remains"], ema)
                self.units.rebuild()
            self.restore(self._loading["state"])
            self._weights.complete()
            self._loading = None


def _same(here: object, there: object) -> bool:
    """Whether two settings are. The rows of saved scores are in the order of the criteria: that counts."""
    if isinstance(here, dict) and isinstance(there, dict):
        return list(here.items()) == list(there.items())
    return here == there
