"""What is compared. Each arm trains one network of a task within a budget, in as many steps as all others."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping

from torch import nn

import niwaki
from benchmarks.accuracy import peers
from benchmarks.accuracy.task import Task
from benchmarks.accuracy.training import Training
from niwaki.methods.registry import methods

Arm = Callable[[Task, int, niwaki.Budget], nn.Module]  # task, seed, what must hold
WIDTHS = 128  # a narrow network's width is a multiple of 1 / WIDTHS


def dense(task: Task, seed: int, budget: niwaki.Budget) -> nn.Module:
    """All of the network; the budget is not looked at."""
    run = Training(task, seed)
    run.advance()
    return run.model


def narrow(task: Task, seed: int, budget: niwaki.Budget) -> nn.Module:
    """The widest network within the budget, all widths scaled alike, trained from scratch."""
    limits = budget.absolute(space_of(task, 1.0))

    def too_wide(step: int) -> bool:
        space = space_of(task, step / WIDTHS)
        cost = space.cost()
        there = {"macs": cost.macs, "params": cost.params, "units": space.num_units}
        return any(there[measure] > limit for measure, limit in limits.items())

    step = bisect_left(range(1, WIDTHS + 1), True, key=too_wide)  # the widest that is not
    if step == 0:
        raise SystemExit(f"No width of {task.name} meets {budget}.")
    run = Training(task, seed, step / WIDTHS)
    run.advance()
    return run.model


def space_of(task: Task, width: float) -> niwaki.SearchSpace:
    """What a network of the task costs."""
    return niwaki.search_space(task.prepared(task.network(width)), task.example(), rehearse=False)


def chosen(criterion: str) -> Arm:
    """Dense training until the methods have finished, a cut by ``criterion``, and training until the end."""

    def arm(task: Task, seed: int, budget: niwaki.Budget) -> nn.Module:
        run = Training(task, seed)
        run.advance(run.schedule.until)
        space = niwaki.search_space(run.model, task.example())
        plan = niwaki.choose(space, niwaki.score(space, criterion, seed=seed), budget)
        run.replace(niwaki.cut(run.model, plan))
        run.advance()
        return run.model

    return arm


def pruned(method: str) -> Arm:
    """A registered method with its default arguments."""

    def arm(task: Task, seed: int, budget: niwaki.Budget) -> nn.Module:
        run = Training(task, seed)
        run.attach(method, budget)
        run.advance()
        return run.model

    return arm


METHODS = tuple(sorted(methods()))
BASELINES = ("narrow", "random", "one-shot", "torch-pruning")
ARMS: Mapping[str, Arm] = {
    "dense": dense,
    **{name: pruned(name) for name in METHODS},
    "narrow": narrow,
    "random": chosen("random"),
    "one-shot": chosen("magnitude"),
    "torch-pruning": peers.group_norm,
}
