"""LHSPG's scores: criteria of the merged weights at the moment of a selection, and groups that are protected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
import torch

from niwaki.core.counts import FloatArray
from niwaki.core.scalars import whole_seed
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.measure import Measurement, ScoreSettings
from niwaki.criteria.normalise import Compare
from niwaki.errors import BudgetError, MethodError
from niwaki.methods.checks import check_mask
from niwaki.methods.lora.pairs import can_leave, held
from niwaki.methods.parts import Target
from niwaki.methods.portions import PortionScores
from niwaki.methods.schedule import Timeline
from niwaki.methods.scoring import Criteria, Mix
from niwaki.methods.sensitivity import layer_losses, sensitivity
from niwaki.methods.trained_units import TrainedUnits


@final
class MergedScores(PortionScores):
    """PortionScores of the weights when all pairs have just been merged. ``protect``: the share of the groups that lose
    nothing, those to which the loss is most sensitive before the first portion."""

    def __init__(
        self,
        units: TrainedUnits,
        target: Target,
        timeline: Timeline,
        criteria: Criteria,
        seed: int,
        loss: Callable[[], Any] | None,
        protect: float,
        compare: Compare,
    ) -> None:
        self._units, self._target, self._timeline = units, target, timeline
        self._seed, self._loss, self._protect = whole_seed(seed), loss, protect
        self._mix = Mix.of(criteria, units.space, compare)
        needs = [f"the criterion {criterion.name!r}" for criterion in self._mix.registered if criterion.needs_data]
        if loss is not None and not callable(loss):
            raise MethodError(f"loss={loss!r} is not a function. Pass loss=lambda: loss_fn(model(x), y).")
        if loss is None and (protect or needs):
            raise MethodError(
                f"LHSPG measures {'how the loss grows when parts of a group are zero' if protect else needs[0]}, but "
                "knows no loss. Pass loss=lambda: loss_fn(model(x), y), or leave out what needs it: protect=0 and "
                "criteria={'magnitude': 1.0}."
            )
        self._space = units.space
        self._protected: BoolArray | None = None  # [groups]

    @property
    def timeline(self) -> Timeline:
        """Known from the beginning."""
        return self._timeline

    @property
    def space(self) -> SearchSpace:
        """The merged network's, in which protected groups lose nothing."""
        return self._space

    @property
    def compare(self) -> Compare:
        """As the criteria are."""
        return self._mix.compare

    def before(self, step: int) -> None:
        """Nothing of a step is needed."""

    def observe(self, step: int, leaving: BoolArray) -> None:
        """The weights are looked at when all pairs have been merged."""

    def ready(self, step: int) -> None:
        """Hold the groups to which the loss is most sensitive."""
        if self._protected is not None:
            return
        space = self._units.space
        may = can_leave(space)
        self._protected = np.zeros(len(space.groups), dtype=bool)
        number = round(self._protect * int(may.sum()))
        if not number:
            return
        assert self._loss is not None
        saliency = self.saliency(step, np.ones(space.num_units, dtype=bool))
        found = sensitivity(layer_losses(space, self._units.engine, saliency, self._loss))
        order = np.argsort(np.where(may, -found, np.inf), kind="stable")
        self._protected[order[:number]] = True
        self._hold()
        try:
            self._target.check_reachable(self._space)
        except BudgetError as cause:
            names = ", ".join(space.groups[n].name for n in np.flatnonzero(self._protected))
            raise BudgetError(
                f"With the most sensitive groups protected ({names}) there is too little to remove. {cause} Nothing "
                "has been removed yet: protect fewer."
            ) from cause

    def _hold(self) -> None:
        assert self._protected is not None
        self._space = held(self._units.space, np.flatnonzero(self._protected).tolist())

    def saliency(self, step: int, keep: BoolArray) -> FloatArray:
        """Of W."""
        criteria, loss, measured, units = self._mix.registered, self._loss, None, self._units
        if criteria:
            counted = keep if self._mix.by_layer else None
            measurement = Measurement(self._space, criteria, ScoreSettings(self._seed, 1), counted)
            if any(criterion.needs_data for criterion in criteria):
                assert loss is not None
                measured = measurement.over([None], lambda model, batch: loss())
            else:
                measured = measurement.at_weights()
        values = self._mix.with_functions(measured, self._space, units.live.here, units.device)
        return self._mix.weighted(values, self._space, keep, step)

    def saliency_again(self, step: int, here: BoolArray) -> None:
        """The choice is final."""

    def group_weight(self) -> None:
        """No group matters more than another, once some are protected."""

    def phase(self, step: int) -> str:
        """Before the first portion."""
        return "waiting"

    def describe(self) -> str:
        """Nothing beside the portions."""
        return ""

    def take_back(self) -> None:
        """Nothing is only tried."""

    def settings(self) -> dict[str, Any]:
        """Criteria, how units are compared, seed, and how much is protected."""
        return {**self._mix.settings(), "seed": self._seed, "protect": self._protect}

    def state(self) -> dict[str, Any]:
        """The groups that are protected, once they are known."""
        return {} if self._protected is None else {"protected": torch.from_numpy(self._protected.copy())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        protected = state.get("protected")
        self._protected = None if protected is None else protected.cpu().numpy().copy()
        self._space = self._units.space
        if self._protected is not None:
            self._hold()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Perhaps one truth value per group."""
        if "protected" in state:
            check_mask("choice of protected groups", state["protected"], len(self._units.space.groups))
