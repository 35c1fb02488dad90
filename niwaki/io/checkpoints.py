"""Checkpoints of a run in progress: the last few, each whole, and enough to go on to the same bits."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import nn
from torch.optim import Optimizer

from niwaki.core.plan import Plan
from niwaki.errors import FileFormatError, NiwakiError
from niwaki.io.moments import Moment, moments_in, read_moment, write_moment
from niwaki.io.optimizer import keep_dtypes
from niwaki.io.randomness import random_state, set_random_state
from niwaki.surgery.plans import plan_of


class Stateful(Protocol):
    """Models, optimizers (with the method that hangs on one), schedulers, gradient scalers, averaged models."""

    def state_dict(self) -> Any:
        """All that changes, as nested dictionaries and lists of tensors and plain values."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Go on from what `state_dict` gave."""


@final
class Checkpoints:
    """The checkpoints of one run, in one directory.

    Args:
        directory: made, with its parents, at the first `save`.
        keep: how many stay; a new one is whole on the disk before an old one goes.

    Example:
        >>> import tempfile, torch, niwaki
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     checkpoints = niwaki.Checkpoints(directory)
        ...     parts = {"model": model, "optimizer": optimizer}
        ...     checkpoints.save(120, parts, position={"epoch": 3, "batch": 20})
        ...     checkpoints.load(parts)  # later, in a fresh process: also puts all random generators back
        (120, {'epoch': 3, 'batch': 20})
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2) -> None:
        if keep < 1:
            raise FileFormatError(f"keep={keep} must be 1 or more: a run goes on from its last checkpoint.")
        self.directory, self.keep = Path(directory), keep

    @property
    def latest(self) -> int | None:
        """The step of the last checkpoint; None where there is none yet."""
        found = moments_in(self.directory)
        return found[-1][0] if found else None

    def save(self, step: int, parts: Mapping[str, Stateful], position: Any = None) -> None:
        """Write a checkpoint: the state of all parts, of all random generators, and the position in the data.

        Args:
            step: optimizer steps taken; the checkpoint with the largest is the last one.
            parts: what changes during the run, by names of your choice.
            position: where in its data the run is: numbers, text, tensors, and lists and dictionaries of them.

        Raises:
            FileFormatError: something cannot be saved, and the message says what; or the directory cannot be written
                to. The checkpoints before stay.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise FileFormatError(f"step={step!r} must be a whole number, 0 or more.")
        plans = {name: plan_of(part) for name, part in parts.items() if isinstance(part, nn.Module)}
        facts = {"plans": {name: plan.to_json() for name, plan in plans.items() if plan is not None}}
        state = {
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "position": position,
            "random": random_state(_device(parts)),
        }
        write_moment(self.directory, Moment(step, facts, state), self.keep)

    def load(self, parts: Mapping[str, Stateful]) -> tuple[int, Any]:
        """Go on from the last checkpoint.

        Args:
            parts: built as they were when the run began, by the same names. A model that had been cut or shrunk
                must be so again first: `plan` tells how.

        Returns:
            The step, and the position that was saved with it.

        Raises:
            FileFormatError: there is no checkpoint, it is damaged, from a newer niwaki, or of other parts; the message
                names the first difference. Everything is as it was then.
        """
        moment = read_moment(self.directory)
        try:
            saved, drawn = moment.state["parts"], moment.state["random"]
            for name in (*saved, *parts):
                if name not in saved or name not in parts:
                    raise FileFormatError(
                        f"The checkpoint of step {moment.step} in {str(self.directory)!r} has the parts "
                        f"{', '.join(saved)}, and here are {', '.join(parts)}. Give the same parts by the same names."
                    )
                part = parts[name]
                if isinstance(part, nn.Module):
                    self._check_shapes(name, part, saved[name], moment)
            before = {name: copy.deepcopy(p.state_dict()) for name, p in parts.items() if not isinstance(p, nn.Module)}
            here = random_state(_device(parts))
            try:
                set_random_state(drawn, _device(parts))
                for name in sorted(parts, key=lambda name: isinstance(parts[name], nn.Module)):
                    _load(parts[name], saved[name])
            except BaseException:
                set_random_state(here, _device(parts))
                for name, state in before.items():
                    parts[name].load_state_dict(state)
                raise
            return moment.step, moment.state["position"]
        except NiwakiError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as cause:
            raise FileFormatError(
                f"The checkpoint of step {moment.step} in {str(self.directory)!r} does not fit: "
                f"{type(cause).__qualname__}: {cause}. Build all parts as they were when the run began."
            ) from cause

    def plan(self, part: str = "model") -> Plan | None:
        """The plan by which a model had been cut or shrunk when the last checkpoint was written; None if it was whole.

        Raises:
            FileFormatError: there is no checkpoint, or it is damaged.
        """
        text = read_moment(self.directory).facts["plans"].get(part)
        return None if text is None else Plan.from_json(text)

    def _check_shapes(self, name: str, model: nn.Module, saved: Mapping[str, Any], moment: Moment) -> None:
        here, there = (_shapes(state) for state in (model.state_dict(), saved))
        for key in (*there, *here):
            if here.get(key) != there.get(key):
                advice = "Build the model as it was when the run began."
                if name in moment.facts["plans"]:
                    advice = f"It had been cut or shrunk: do so again by Checkpoints.plan({name!r}) first."
                raise FileFormatError(
                    f"The checkpoint of step {moment.step} in {str(self.directory)!r} is of another {name}: {key!r} "
                    f"was {there.get(key, 'not there')} and is {here.get(key, 'not there')}. {advice}"
                )


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value.shape) if isinstance(value, torch.Tensor) else "no tensor" for name, value in state.items()
    }


def _load(part: Stateful, state: Any) -> None:
    part.load_state_dict(state)
    if isinstance(part, Optimizer):
        parameters = [parameter for group in part.param_groups for parameter in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        keep_dtypes(part, dict(zip(numbers, parameters, strict=True)), state["state"])


def _device(parts: Mapping[str, Stateful]) -> torch.device:
    """Where the first model computes."""
    models = (part for part in parts.values() if isinstance(part, nn.Module))
    return next((tensor.device for model in models for tensor in model.parameters()), torch.device("cpu"))
