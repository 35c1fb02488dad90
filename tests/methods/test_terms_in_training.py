"""Terms that no parameters make (shortcuts, poolings, edges of both) in training: methods close their gates."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from optimizers import Calls
from terms import METHODS, STEPS, WITH_EDGES, Run, X, agrees, h2spg, hesso, unit_of, with_edges

import niwaki
from niwaki.core.edits import EraseModules
from niwaki.errors import BudgetError, MethodError


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("kind", METHODS)
def test_terms_leave_as_structures_of_weights_do(kind: str, adam: bool) -> None:
    run = Run(kind, adam)
    assert set(run.gates.values()) == {1.0} and run.hooks() > 0
    run.train()
    assert run.method is not None and run.method.done and len(run.erased) == 3
    closed = {name for name, value in run.gates.items() if value == 0}
    assert closed and closed <= run.erased and {run.gates[name] for name in run.gates.keys() - closed} == {1.0}
    paths = {path for one in run.space.structures if one.name in closed for path in one.gates}
    assert run.hooks() == len(paths)
    if kind == "h2spg":  # at the end what was chosen goes first, whatever is left of it
        chosen = run.method.selector.choice.units  # type: ignore[attr-defined]
        assert np.array_equal(chosen, run.method.selector.removed())
    agrees(run)


def test_h2spg_brings_gates_to_zero_by_itself() -> None:
    """With steps that are large enough; the half-space projection makes the last of them."""
    run = Run(None)
    run.optimizer.param_groups[0]["lr"] = 0.3
    run.method = h2spg(run.space, run.optimizer, penalty=0.5, budget=niwaki.Budget(units=run.space.num_units - 6))
    run.train(0, STEPS - 6)
    gone = {name for name, value in run.gates.items() if value == 0}
    assert gone and not run.method.selector.ended(run.method.step)
    assert all(run.method.selector.removed()[unit_of(run, name)] for name in gone)
    run.train(STEPS - 6, STEPS)
    assert gone <= run.erased
    agrees(run)


def test_an_edge_fades_in_its_weights_and_its_gates() -> None:
    """Linearly: after step t of a period of T steps, (T - t) / T is left."""
    run = with_edges()
    assert run.method is not None
    start, until = 5, 13  # of the first period: its selection, and its last step
    for step in range(start, until):
        run.train(step if step > start else 0, step + 1)
        fading = {name: value for name, value in run.gates.items() if value != 1}
        assert fading and fading.keys() <= WITH_EDGES
        left = (until - 1 - step) / (until - start)
        assert all(math.isclose(value, left, rel_tol=1e-5, abs_tol=1e-6) for value in fading.values())
    run.train(until)
    assert run.erased == WITH_EDGES and not run.weights["edges.0.layer.weight"].any()
    assert run.weights["edges.1.layer.weight"].any()
    (edit,) = run.method.plan().edits_of(EraseModules)
    assert {"edges.0.pool", "edges.1.pool", "largest"} <= {*edit.gated}
    agrees(run)


FREE = (
    "skip, edges.0.pool and 1 more stay: to erase them would save no macs. A limit in units counts each structure as o"
)


def test_what_saves_nothing_stays_and_is_named() -> None:
    """Under a limit in MACs shortcuts and poolings keep their gates open, whatever they are worth. Named are those that
    could leave together; ``largest`` has to stay where its two neighbours are gone."""
    run = Run(None)
    run.method = h2spg(run.space, run.optimizer, budget=niwaki.Budget(macs=0.3), criteria={"taylor1": 1.0})
    with pytest.warns(UserWarning, match="H2SPG has seen no step"):
        assert "free" not in run.method.plan().provenance  # nothing is chosen yet
    run.train()
    assert run.erased == {"branch..norm"} and set(run.gates.values()) == {1.0}
    assert FREE in str(run.method.plan())
    batches = [(X, torch.randint(0, 3, (4,)))]
    scores = niwaki.score(run.space, "taylor1", batches, torch.nn.CrossEntropyLoss())
    for remove in ("structures", "both"):
        plan = niwaki.choose(run.space, scores, niwaki.Budget(macs=0.3), remove=remove)  # type: ignore[arg-type]
        assert plan.provenance["free"].startswith(FREE)
    counted = niwaki.Budget(units=run.space.num_units - 1)
    assert "free" not in niwaki.choose(run.space, scores, counted, remove="structures").provenance
    assert "free" not in niwaki.choose(run.space, scores, niwaki.Budget(macs=0.3)).provenance


@pytest.mark.parametrize("kind", METHODS)
def test_the_plain_loop_trains_the_same(kind: str) -> None:
    fast, plain = (Run(kind, vectorised=fast).train() for fast in (True, False))
    assert fast.erased == plain.erased and fast.gates == plain.gates
    assert all(torch.allclose(weight, plain.weights[name], atol=1e-12) for name, weight in fast.weights.items())


def test_open_gates_change_nothing() -> None:
    """Where a shortcut is the stream itself, gradients are added up in another order."""
    measured, bare = Run("hesso").train(0, 5), Run(None).train(0, 5)
    assert all(torch.allclose(weight, bare.weights[name], atol=1e-14) for name, weight in measured.weights.items())


PHASES = {
    "hesso": {1: "waiting", 4: "scoring", 9: "fading", 16: "fading", 22: "done"},
    "cric": {1: "waiting", 6: "trial", 12: "fading", 18: "fading", 22: "done"},
    "h2spg": {1: "waiting", 4: "scoring", 9: "half-space", 22: "done"},
    "h2spg by criteria": {1: "waiting", 4: "scoring", 9: "half-space", 22: "done"},
}


CASES = [(kind, stop, True) for kind, stops in PHASES.items() for stop in stops]


@pytest.mark.parametrize(("kind", "stop", "shrink"), [*CASES, ("hesso", 9, False), ("cric", 6, False)])
def test_a_run_resumes_to_the_same_bits(kind: str, stop: int, shrink: bool) -> None:
    def run() -> Run:
        policy = niwaki.ShrinkPolicy(cost=0.1) if shrink else False
        return with_edges(shrink=policy) if kind == "hesso" else Run(kind, adam=True, shrink=policy)

    first, second = run().train(0, stop), run()
    assert first.method is not None and first.method.progress.phase == PHASES[kind][stop]
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    if shrink and kind == "hesso":  # the edge leaves with its weights and gates, in mid-training
        assert ("edges.0.layer.weight" in first.weights) == (stop < 16)
    whole, second = first.train(stop), second.train(stop)
    assert whole.weights.keys() == second.weights.keys() and whole.gates == second.gates
    assert all(torch.equal(weight, second.weights[name]) for name, weight in whole.weights.items())
    assert whole.erased == second.erased and whole.hooks() == second.hooks()


def test_what_is_zero_leaves_in_mid_training() -> None:
    """The edge with its weights, and poolings: the rest trains as it would have."""
    runs = [with_edges(shrink=shrink).train() for shrink in (False, niwaki.ShrinkPolicy(cost=0.1))]
    whole, small = runs
    assert small.method is not None and whole.method is not None
    assert "edges.0.layer.weight" not in small.weights and small.method.plan().kept == whole.method.plan().kept
    assert torch.allclose(small.model(X), whole.model(X), atol=1e-10)
    agrees(small)


def test_hooks_go_whatever_happens() -> None:
    run = Run(None)
    with pytest.raises(BudgetError):
        hesso(run.space, run.optimizer, budget=niwaki.Budget(macs=0.001))
    assert run.hooks() == 0
    run.model.skip.register_forward_hook = None  # so that the second of them fails
    with pytest.raises(TypeError):
        hesso(run.space, run.optimizer)
    del run.model.skip.register_forward_hook
    assert run.hooks() == 0 and not run.optimizer._optimizer_step_pre_hooks
    method = hesso(run.space, run.optimizer)
    method.detach()
    assert run.hooks() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.attach()
    run.method = method
    run.train(0, 10)
    with pytest.warns(UserWarning, match=r"HESSO has faded \d terms that no parameters make .*Cut it by the method's"):
        method.detach()
    assert run.hooks() == 0


def test_a_loop_that_does_not_see_the_gates_is_told() -> None:
    run = Run(None)
    run.method = hesso(run.space, run.optimizer)
    other = copy.deepcopy(run.model)
    with pytest.raises(MethodError, match="No gradient has reached the gates of terms without parameters"):
        for step in range(6):
            for weight, copied in zip(run.model.parameters(), other.parameters(), strict=True):
                weight.grad = torch.ones_like(copied) * (step + 1)
            run.optimizer.step()
    states = Run("hesso").optimizer.state_dict()
    states["niwaki"]["state"]["gates"] = torch.ones(1)
    with pytest.raises(MethodError, match=r"damaged: its gates are not \d+ numbers, one per term"):
        Run("hesso").optimizer.load_state_dict(states)


@pytest.mark.parametrize("kind", METHODS)
def test_no_step_waits_for_the_device(kind: str) -> None:
    run = Run(kind)
    assert run.method is not None
    waiting = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "unique"}
    quiet = 0
    for step in range(STEPS - 6):
        run.optimizer.zero_grad()
        run.loss(step).backward()
        before = run.method.progress
        with Calls() as calls:
            run.optimizer.step()
        after = run.method.progress
        if (before.phase, before.marked, before.zero) == (after.phase, after.marked, after.zero):
            tried = kind == "cric" and before.phase == "trial"  # whose last step is a boundary, too
            assert tried or not waiting & set(calls.counts), f"step {step}: {calls.counts}"
            quiet += 1
    assert quiet > 8
