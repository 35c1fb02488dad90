"""Random networks, random valid sets of their structures: no sub-network may be invalid or inexact.

For each network, by its number: what is listed is looked at by a run (`listing`), then random plans for the exported
program and for the class, every other one with random widths too, must cut to what the zeroed network computes, forward
and backward, and cost no more than predicted (less, where operators computed in vain before, or served several
structures that went). A row per network, as a line of JSON; networks that have a row already are not tried again. A
failure is written as a script that shows it.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import niwaki
from benchmarks.erasing import listing
from benchmarks.erasing.drawn import Drawn, drawn
from niwaki.program.entry import program_of
from niwaki.testing.erasing import erased_structures, random_erasing_plan
from niwaki.testing.models import randomised
from niwaki.testing.rivals import GRADIENT_TOLERANCE, Rivals
from niwaki.trace import tracer
from niwaki.trace.structures import tensors_in
from niwaki.verify import TOLERANCE

Row = dict[str, Any]
FORMS = ("program", "class", "streams")  # the last is a program, too

SCRIPT = """{source}

if __name__ == "__main__":
    import niwaki

    # {problem}
    torch.manual_seed({seed})
    model = Net().double().eval()
    inputs = ({inputs},)
    space = niwaki.search_space(model, inputs, as_graph={as_graph}, erase={erase!r})
    print(space)
    keep = torch.ones(space.num_units, dtype=torch.bool).numpy()
    keep[{gone}] = False
    plan = space.plan(keep)
    print(niwaki.check(model, plan, inputs, as_graph={as_graph}))
"""


class Problem(Exception):
    """What is wrong with a network, as a sentence. ``gone``: the units of the plan that showed it; ``form``: whether
    that was cut as a program, or as a class."""

    def __init__(self, text: str, form: str = "class", gone: list[int] | None = None) -> None:
        super().__init__(text)
        self.form, self.gone = form, gone or []


def run(networks: int, first: int, plans: int, forms: Sequence[str], out: Path) -> None:
    """Try the networks ``first`` ... ``first + networks - 1`` that have no row in ``out`` yet, then print the sums."""
    out.mkdir(parents=True, exist_ok=True)
    rows_file = out / "rows.jsonl"
    known = {row["network"] for row in read(rows_file)}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with rows_file.open("a") as file:
        for number in range(first, first + networks):
            if number in known:
                continue
            row = tried(number, plans, forms, out)
            print(json.dumps(row), file=file, flush=True)
            if "problem" in row:
                print(f"network {number}: {row['problem']}  ({out / f'network_{number}.py'})", flush=True)
    print(summary([row for row in read(rows_file) if first <= row["network"] < first + networks]))


def tried(number: int, plans: int, forms: Sequence[str] = FORMS, out: Path | None = None) -> Row:
    """The row of one network; its script is written to ``out`` if something is wrong with it."""
    start = time.process_time()
    network, row = drawn(number), Row(network=number)
    try:
        _try(network, plans, forms, row)
    except Problem as problem:
        row["problem"] = str(problem)
        if out is not None:
            _write(network, problem, out / f"network_{number}.py")
    return row | {"seconds": round(time.process_time() - start, 3)}


def _try(network: Drawn, plans: int, forms: Sequence[str], row: Row) -> None:
    model, inputs = network.build()
    model = randomised(model.eval(), network.seed)
    with torch.no_grad():
        if not all(bool(one.isfinite().all()) for one in tensors_in(model(*inputs))):
            row["skipped"] = "its outputs are not finite"
            return
    try:
        row |= {"plans": 0, "erased": 0, "costs": 0, "forward": 0.0, "backward": 0.0}
        for form in forms:
            subject = program_of(model, (inputs, {}), form != "class")
            erase: Literal["streams", True] = "streams" if form == "streams" else True
            space = niwaki.search_space(subject, inputs, erase=erase, rehearse=False)
            _listed(form, space, inputs, row)
            if row[f"erasable in {form}"]:
                _planned(form, space, inputs, plans, row, np.random.default_rng(network.seed))
    except Problem:
        raise
    except Exception as cause:
        raise Problem(f"{type(cause).__name__}: {cause}") from cause


def _listed(form: str, space: niwaki.SearchSpace, inputs: tuple[Tensor, ...], row: Row) -> None:
    """Each structure by itself, without a cut."""
    model = space.model
    erasable = [one for one in space.structures if one.erasable]
    row |= {f"listed in {form}": len(space.structures), f"erasable in {form}": len(erasable)}
    row.setdefault("refused", {})[form] = dict(
        Counter(_brief(one.refused) for one in space.structures if one.refused is not None)
    )
    order = listing.additions(tracer.trace(model, tracer.example_calls(inputs)).runs[0].nodes) if erasable else {}
    for one in erasable:
        if one.join in order and one.producers and not one.others and not one.gates:
            problem = listing.problem(model, inputs, one, order[one.join])
            if problem is not None:
                raise Problem(problem, form)


def _planned(
    form: str,
    space: niwaki.SearchSpace,
    inputs: tuple[Tensor, ...],
    plans: int,
    row: Row,
    rng: np.random.Generator,
) -> None:
    model = space.model
    for number in range(plans):
        share = float(rng.uniform(0.2, 1.0))
        try:
            keep, plan, less = random_erasing_plan(space, rng, share, widths=bool(number % 2))
        except Exception as cause:
            raise Problem(f"{form}: no plan: {type(cause).__name__}: {cause}", form) from cause
        row["fewer"] = row.get("fewer", 0) + less
        names = [one.name for one in erased_structures(space, keep)]
        if not names:
            continue
        gone, without = np.flatnonzero(~keep).tolist(), f"{form} without {names}"
        try:
            rivals, predicted = Rivals(model, plan), space.cost(plan)
            small = rivals.small
            outputs, gradients = rivals.outputs((inputs, {})), rivals.gradients((inputs, {}))
        except Exception as cause:
            raise Problem(f"{without}: {type(cause).__name__}: {cause}", form, gone) from cause
        if not outputs.within(TOLERANCE[torch.float64]):
            raise Problem(f"{without}: outputs {outputs.deviation:.1e} from the zeroed network's", form, gone)
        if gradients is not None and not gradients.within(GRADIENT_TOLERANCE):
            far = f"the gradient of {gradients.parameter} {gradients.deviation:.1e}"
            raise Problem(f"{without}: {far} from the zeroed network's", form, gone)
        counted = sum(parameter.numel() for parameter in small.parameters()), _macs(small.eval(), inputs)
        if counted[0] > predicted.params or counted[1] > predicted.macs:
            said = f"{predicted.params} parameters and {predicted.macs} MACs"
            raise Problem(f"{without}: predicted are {said}, counted {counted}", form, gone)
        row["costs"] += counted == (predicted.params, predicted.macs)
        row |= {"plans": row["plans"] + 1, "erased": row["erased"] + len(names)}
        row["forward"] = max(row["forward"], outputs.deviation)
        row["backward"] = max(row["backward"], 0.0 if gradients is None else gradients.deviation)


def _macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(*inputs)
    return int(counter.get_total_flops() // 2)


def _brief(refused: str) -> str:
    """A reason without names and sizes."""
    if refused.startswith("what it is added to is ["):
        return "what it is added to has to be stretched"
    if "', which" in refused:
        return f"what{refused.rpartition(chr(39) + ', which')[2]}"
    return refused.split(" has to stay: ")[0]


def _write(network: Drawn, problem: Problem, path: Path) -> None:
    inputs = ", ".join(f"torch.randn({', '.join(map(str, shape))}, dtype=torch.float64)" for shape in network.inputs)
    text = " ".join(str(problem).split())[:300]
    path.write_text(
        SCRIPT.format(
            source=network.source,
            problem=text,
            seed=network.seed,
            inputs=inputs,
            gone=problem.gone,
            as_graph=problem.form != "class",
            erase="streams" if problem.form == "streams" else True,
        )
    )


def read(rows: Path) -> list[Row]:
    """The rows of a file, if there is one."""
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def summary(rows: list[Row]) -> str:
    """The sums, as a few lines."""
    done = [row for row in rows if "skipped" not in row]
    problems = [row["network"] for row in rows if "problem" in row]

    def total(what: str) -> int:
        return sum(row.get(what, 0) for row in done)

    lines = [f"{len(rows)} networks ({len(rows) - len(done)} skipped: not finite)"]
    for form in FORMS:
        if any(f"listed in {form}" in row for row in done):
            listed, erasable = total(f"listed in {form}"), total(f"erasable in {form}")
            lines.append(f"{form}: {listed} structures, {erasable} erasable")
    lines += [
        f"{total('plans')} plans, which erase {total('erased')} structures; outputs within "
        f"{max((row.get('forward', 0.0) for row in done), default=0.0):.1e}, gradients within "
        f"{max((row.get('backward', 0.0) for row in done), default=0.0):.1e}",
        f"as many parameters and MACs as predicted after {total('costs')} of them, fewer after the others",
        f"{total('fewer')} times a class could not do without all that was drawn",
        f"{len(problems)} with a problem{': ' if problems else ''}{', '.join(map(str, problems[:20]))}",
        f"{sum(row['seconds'] for row in rows):.0f} CPU seconds",
    ]
    for form in FORMS:
        refused: Counter[str] = Counter()
        for row in done:
            refused.update(row.get("refused", {}).get(form, {}))
        lines += [f"  {count} x not erasable in {form}: {reason}" for reason, count in refused.most_common()]
    return "\n".join(lines)
