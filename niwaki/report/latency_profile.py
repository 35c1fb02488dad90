"""Measure the latency that a budget gives for several values of ``round_to``, on this device and in other runtimes."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from niwaki.choosing import choose, compared
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace, check_space
from niwaki.criteria.normalise import Compare, normalise
from niwaki.criteria.score import Scores
from niwaki.errors import BudgetError, MethodError
from niwaki.io.export import export
from niwaki.performance.measure import Clock, Latencies, device_of, latency
from niwaki.selection.budget import Budget, check_budget
from niwaki.surgery.cut import cut

Runtime = Callable[[nn.Module], nn.Module]  # prepares a network to be run
_DENSE = "dense"
_NAMES = ("onnxruntime", "onnxscript")


@dataclass(frozen=True, slots=True, eq=False)
class ProfileRow:
    """The plan of one ``round_to``, its cost, and the fraction of the saliency that it keeps. Values count relative to
    the mean of those that they are compared with (``compare``), so every group counts by its units."""

    round_to: int
    plan: Plan
    macs: int
    params: int
    saliency: float


@dataclass(frozen=True, slots=True, eq=False)
class LatencyProfile:
    """A latency profile. ``rows``: one for each ``round_to`` that meets the budget; ``unmet``: the reasons of the
    others. ``latency``: by runtime; the networks are called ``dense`` and ``round_to=8``, and took turns."""

    budget: Budget
    dense_macs: int
    rows: tuple[ProfileRow, ...]
    unmet: Mapping[int, str]
    latency: Mapping[str, Latencies]

    def __str__(self) -> str:
        head = f"{'round_to':>8} {'MACs':>7} {'saliency':>8}" + "".join(f"  {name:>32}" for name in self.latency)
        lines = [f"{self.budget}; microseconds of a forward pass, and the speed-up over the dense network:", head]
        for name, cells in ((_DENSE, " " * 16), *((_named(row), self._costs(row)) for row in self.rows)):
            shown = (self._time(found, name) for found in self.latency.values())
            lines.append(f"{name.removeprefix('round_to='):>8} {cells}" + "".join(f"  {text:>32}" for text in shown))
        lines += [f"{step:>8} {why}" for step, why in self.unmet.items()]
        lines += [f"{name}: {found.networks[_DENSE]}" for name, found in self.latency.items()]
        return "\n".join(lines)

    def _costs(self, row: ProfileRow) -> str:
        return f"{row.macs / self.dense_macs:>7.1%} {row.saliency:>8.1%}"

    @staticmethod
    def _time(found: Latencies, name: str) -> str:
        one, ratio = found.networks[name], found.ratios[name]
        times = f", {1 / ratio.median:.2f} ({1 / ratio.upper:.2f} to {1 / ratio.lower:.2f})" * (name != _DENSE)
        return f"{one.median_us:,.0f}{times}"


def latency_profile(
    space: SearchSpace,
    scores: Scores,
    budget: Budget,
    inputs: Any,
    *,
    round_to: Sequence[int] = (1, 4, 8, 16, 32),
    compare: Compare | None = None,
    runtimes: Mapping[str, Runtime] | None = None,
    seconds: float = 2.0,
    rounds: int = 15,
    threads: int | None = None,
    clock: Clock = "wall",
) -> LatencyProfile:
    """Choose by ``budget`` once for each ``round_to``, cut, and measure all networks beside the dense one.

    Kernels process a fixed number of channels at once, so networks of equal MACs differ in latency; the best step
    depends on the device, its threads, the batch and the runtime.

    Args:
        space: the search space of the model, which is not changed.
        scores: from `niwaki.score`.
        budget: the budget that all plans meet; its own ``round_to`` is ignored.
        inputs: one call, on the device of the model: a tensor or tuple is positional, a dict is keywords.
        round_to: the steps to try.
        compare: as for `niwaki.choose`.
        runtimes: functions by name that prepare a network to be run, such as ``torch.compile``. None: eager torch, and
            for a model on the CPU also `onnx_runtime` if ``pip install onnx onnxruntime onnxscript`` was done.
        seconds: the time to measure in each runtime.
        rounds: the least number of passes of each network.
        threads: the number of threads of torch on the CPU, and of ONNX Runtime; None: the present number of torch.
        clock: as for `niwaki.latency`.

    Raises:
        BudgetError: no ``round_to`` meets the budget.
        MethodError: ``round_to`` is empty, or an argument has a wrong value.
        TraceError: the model does not run on these inputs.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 2))
        >>> x = torch.randn(8, 64)
        >>> space = niwaki.search_space(net, x)
        >>> scores, budget = niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.52)
        >>> found = niwaki.latency_profile(space, scores, budget, x, runtimes={"torch": lambda net: net}, seconds=0)
        >>> [(row.round_to, f"{row.macs / found.dense_macs:.0%}") for row in found.rows]
        [(1, '52%'), (4, '52%'), (8, '50%'), (16, '50%'), (32, '50%')]
    """
    check_space(space)
    check_budget(budget, training=False)
    if not round_to:
        raise MethodError("round_to is empty: name at least one step, such as (1, 8).")
    compare = compared(scores, compare)
    model = space.model
    if runtimes is None:
        runtimes = {"torch": lambda network: network}
        if device_of([model]).type == "cpu" and all(importlib.util.find_spec(name) for name in _NAMES):
            runtimes["ONNX Runtime"] = lambda network: onnx_runtime(network, inputs, threads)
    rows, unmet = [], {}
    for step in dict.fromkeys(round_to):
        stepped = dataclasses.replace(budget, round_to=step)
        try:
            plan = choose(space, scores, stepped, compare=compare, example_inputs=inputs)
        except BudgetError as cause:
            unmet[step] = str(cause)
            continue
        cost = space.cost(plan)
        rows.append(ProfileRow(step, plan, cost.macs, cost.params, kept_saliency(space, scores, plan, compare)))
    if not rows:
        raise BudgetError(f"No step meets the budget. {next(iter(unmet.values()))}")
    networks = {_DENSE: model} | {_named(row): cut(model, row.plan) for row in rows}
    found = {
        name: latency(
            {called: ready(network) for called, network in networks.items()},
            inputs,
            seconds=seconds,
            rounds=rounds,
            threads=threads,
            clock=clock,
        )
        for name, ready in runtimes.items()
    }
    return LatencyProfile(dataclasses.replace(budget, round_to=1), space.cost().macs, tuple(rows), unmet, found)


def kept_saliency(space: SearchSpace, scores: Scores, plan: Plan, compare: Compare = "group") -> float:
    """The fraction of the saliency that ``plan`` keeps; values count relative to the mean of those that they are
    compared with."""
    saliency = scores.values - min(0.0, scores.values.min(initial=0.0))
    values = normalise(space, saliency, np.ones(space.num_units, dtype=bool), compare)
    return float(values[space.keep_of(plan)].sum() / max(values.sum(), np.finfo(np.float64).tiny))


def onnx_runtime(network: nn.Module, inputs: Any, threads: int | None = None) -> nn.Module:
    """The network in ONNX Runtime on the CPU, for inputs of these sizes: exported, compared (see `niwaki.export`), and
    loaded. It takes the inputs of the network and returns its output tensors as a list.

    Raises:
        ExportError: the network cannot be exported, or ``pip install onnx onnxruntime onnxscript`` was not done.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        program = export(network, inputs, path)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return _Session(session, program.graph_signature.user_inputs)


class _Session(nn.Module):
    """A session of ONNX Runtime that is called like a network."""

    def __init__(self, session: Any, names: Sequence[Any]) -> None:
        super().__init__()
        wanted = {item.name for item in session.get_inputs()}
        self._names = [name if name in wanted else None for name in names]
        self._run = session.run

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        leaves = tree_leaves((args, kwargs))
        feed = {name: leaf.numpy() for name, leaf in zip(self._names, leaves, strict=True) if name is not None}
        return [torch.from_numpy(value) for value in self._run(None, feed)]


def _named(row: ProfileRow) -> str:
    return f"round_to={row.round_to}"
