"""Methods, detached, in each of their phases, and the step at which that is."""

from __future__ import annotations

import numpy as np
import torch
from torch.optim import Optimizer

import niwaki
from niwaki.methods.method import Method
from niwaki.methods.portions import FADING, IMPORTANT, ZERO
from niwaki.methods.snapshot import TrainingSnapshot
from niwaki.selection import select

FADES = ("idle", "scoring", "fading", "angle-safe fading", "scoring and fading", "keeping zeros")
CRIC = ("CRIC idle", "CRIC scoring", "CRIC trial", "CRIC end of a cycle", "CRIC fading", "CRIC keeping zeros")
HALF_SPACE = ("HSPG stage 1", "HSPG stage 2", "AdaHSPG+ proximal", "AdaHSPG+ half-space", "DHSPG window", "DHSPG")
PHASES = (*FADES, *CRIC, *HALF_SPACE)
CHANGES = ("CRIC end of a cycle",)  # phases after which the state has to be put back

TARGETS = {"idle": 1.05, "scoring": 1.7, "fading": 1.20, "keeping zeros": 1.12}
TARGETS |= {f"CRIC {phase}": target for phase, target in TARGETS.items()}
TARGETS |= dict.fromkeys(HALF_SPACE, 1.6) | {"DHSPG window": 1.7}


def in_phase(space: niwaki.SearchSpace, optimizer: Optimizer, phase: str) -> tuple[Method, int]:
    """A method, detached, and the number of steps done when the step to be timed begins."""
    if phase in HALF_SPACE:
        return half_space(space, optimizer, phase)
    return corrected(space, optimizer, phase) if phase in CRIC else fading(space, optimizer, phase)


def fading(space: niwaki.SearchSpace, optimizer: Optimizer, phase: str) -> tuple[niwaki.HESSO, int]:
    """HESSO."""
    fade = "angle-safe" if phase == "angle-safe fading" else "linear"
    schedule = niwaki.Schedule(start=1001, until=2010, periods=10, fade=fade)
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.5), schedule)
    method.detach()
    leaving, step = {"idle": (0.0, 0.0), "scoring": (0.0, 0.0)}.get(phase, (0.5, 0.6)), {"idle": 0, "scoring": 1004}
    if phase == "keeping zeros":
        leaving = (1.0, 1.0)
    keep = [
        select(space, np.ones(space.num_units), {"macs": (1 - 0.5 * share) * space.cost().macs}) for share in leaving
    ]
    status = np.full(space.num_units, IMPORTANT, np.int8)
    status[~keep[1]] = FADING
    status[~keep[0]] = ZERO
    method.restore({"status": torch.from_numpy(status), "samples": 0})
    return method, {
        **step,
        "fading": 1550,
        "angle-safe fading": 1550,
        "scoring and fading": 1606,
        "keeping zeros": 3000,
    }[phase]


def corrected(space: niwaki.SearchSpace, optimizer: Optimizer, phase: str) -> tuple[niwaki.CRIC, int]:
    """HESSO-CRIC."""
    schedule = niwaki.Schedule(start=1001, until=4010, periods=10)
    method = niwaki.CRIC(space, optimizer, niwaki.Budget(macs=0.5), schedule, layers=0, cycle=10)
    method.detach()
    state = method.state()
    half = select(space, np.ones(space.num_units), {"macs": 0.5 * space.cost().macs})
    trials = state["trials"] | {"trial": torch.from_numpy(~half), "cycle": 1, "began": 1010}
    if phase in ("CRIC trial", "CRIC end of a cycle"):
        state |= {"trials": trials, "snapshot": TrainingSnapshot.of(space.model, optimizer).data()}
    if phase in ("CRIC fading", "CRIC keeping zeros"):
        gone = FADING if phase == "CRIC fading" else ZERO
        status = np.where(half, IMPORTANT, gone).astype(np.int8)
        state |= {"trials": trials | {"ended": 1020}, "status": torch.from_numpy(status)}
    method.restore(state)
    steps = {"CRIC idle": 0, "CRIC scoring": 1004, "CRIC trial": 1014, "CRIC end of a cycle": 1019, "CRIC fading": 1100}
    return method, steps.get(phase, 5000)


def half_space(space: niwaki.SearchSpace, optimizer: Optimizer, phase: str) -> tuple[Method, int]:
    """A half-space method, with a penalty that changes nothing."""
    schedule, budget = niwaki.Schedule(start=11, until=10**6), niwaki.Budget(macs=0.5)
    method: Method
    if phase.startswith("HSPG"):
        method = niwaki.HSPG(space, optimizer, budget, schedule, penalty=1e-9)
    elif phase.startswith("AdaHSPG+"):
        method = niwaki.AdaHSPG(space, optimizer, budget, schedule, penalty=1e-9)
    else:
        method = niwaki.DHSPG(space, optimizer, budget, schedule, penalty=1e-9, window=10**5)
    method.detach()
    state = method.state()
    if phase == "AdaHSPG+ half-space":
        method.restore(state | {"mode": "half-space"})
    if phase == "DHSPG":
        keep = select(space, np.ones(space.num_units), {"macs": 0.5 * space.cost().macs})
        method.restore(state | {"chosen": torch.from_numpy(~keep)})
    return method, {"HSPG stage 1": 4}.get(phase, 14)
