"""How many structures the models of the zoos have, and how many can be erased; exact on every tenth model.

One process per model, as in `benchmarks.zoo`, whose models and caps these are. All structures of the model itself are
counted; every tenth model is cut, too: random valid erasures, alone and with random widths, forward and backward.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import niwaki
from benchmarks.zoo import of_timm, of_transformers, operators
from benchmarks.zoo.entries import Entry
from benchmarks.zoo.processes import Job, run
from benchmarks.zoo.worker import Recorder, Stopped, warm_up
from niwaki.testing import check_erasing
from niwaki.testing.models import randomised

Row = dict[str, Any]
ZOOS = {"timm": of_timm.entries, "transformers": of_transformers.entries}
TENTH = 10
_MOST_REASONS = 12


def sweep(options: argparse.Namespace) -> None:
    """Run what has no row in ``options.out`` yet, and print the table."""
    operators.prepare()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    known = {(row["zoo"], row["name"]) for row in rows}
    jobs = []
    for zoo in options.zoo:
        for number, entry in enumerate(ZOOS[zoo]()):
            if (zoo, entry.name) not in known and number % options.every == 0:
                jobs.append(_job(entry, plans=options.plans if number % TENTH == 0 else 0, options=options))
    if jobs and not options.read:
        if any(job.row["zoo"] == "transformers" for job in jobs):
            of_transformers.prepare()
        warm_up()
        gc.freeze()
        with results.open("a") as file:
            for row in run(jobs, options.jobs):
                rows.append(row)
                print(json.dumps(row), file=file, flush=True)
                print(f"{len(rows)}/{len(known) + len(jobs)} {_line(row)}", flush=True)
    print(table(rows))


def _job(entry: Entry, plans: int, options: argparse.Namespace) -> Job:
    row = {"zoo": entry.zoo, "name": entry.name, "kind": entry.kind}
    path = options.out / entry.zoo / f"{entry.name}.json"
    return Job(row, partial(examine, entry, plans=plans), path, options.gigabytes, options.seconds)


def examine(entry: Entry, path: Path, plans: int) -> None:
    """Fill the row of one model; never raises."""
    recorder = Recorder(path, {"zoo": entry.zoo, "name": entry.name, "kind": entry.kind})
    try:
        torch.manual_seed(0)
        with recorder.stage("build"):
            model, inputs = entry.build()
            model = randomised(model.eval())
        with recorder.stage("analyse"):
            spaces = []
            for erase in (False, True):
                start = time.process_time()
                spaces.append(niwaki.search_space(model, inputs, erase=erase))
                recorder.note(**{"with_s" if erase else "without_s": time.process_time() - start})
            space = spaces[-1]
            erasable = [one for one in space.structures if one.erasable]
            outer = [one for one in erasable if not any(it in erasable for it in _around(space, one))]
            recorder.note(
                listed=len(space.structures),
                erasable=len(erasable),
                params=space.cost().params,
                inside=sum(one.params for one in outer),
                refused=dict(Counter(_brief(one.refused) for one in space.structures if one.refused is not None)),
            )
        for form, as_graph in (("class", False), ("program", True)):
            if plans and (erasable or as_graph):
                with recorder.stage(form):
                    try:
                        found = check_erasing(model, inputs, plans=plans, as_graph=as_graph, least_erasable=0)
                    except AssertionError as cause:
                        recorder.note(**{form: {"wrong": " ".join(str(cause).split())[:300]}})
                        continue
                    except niwaki.errors.TraceError as cause:
                        recorder.note(**{form: {"refused": " ".join(str(cause).split())[:300]}})
                        continue
                    recorder.note(
                        **{
                            form: {
                                "erasable": found.erasable,
                                "erased": found.erased,
                                "forward": found.forward,
                                "backward": found.backward,
                            }
                        }
                    )
        recorder.note(stage="done")
    except Stopped:
        pass


def _around(space: niwaki.SearchSpace, one: Any) -> list[Any]:
    found = []
    while one.inside is not None:
        one = space.structures[one.inside]
        found.append(one)
    return found


def _brief(refused: str) -> str:
    """A reason without names and sizes."""
    for mark in ("', which makes", ": TypeError", ": AttributeError", ": RuntimeError", ": IndexError", ": ValueError"):
        if mark in refused:
            return refused[refused.index(mark) + 3 :] if mark.startswith("'") else refused[: refused.index(mark)]
    return refused.split(" [", maxsplit=1)[0].split(": it is", maxsplit=1)[0].split("; use as_graph", maxsplit=1)[0]


def _line(row: Row) -> str:
    if "error" in row:
        return f"{row['zoo']} {row['name']}: {row.get('stage')}: {row['error'][:160]}"
    forms = {
        form: row[form].get("wrong") or "exact" for form in ("class", "program") if "erasable" in row.get(form, {})
    }
    wrong = {form: row[form]["wrong"] for form in ("class", "program") if "wrong" in row.get(form, {})}
    return f"{row['zoo']} {row['name']}: {row['erasable']} of {row['listed']}  {wrong or forms or ''}"


def table(rows: Iterable[Row]) -> str:
    """Markdown: a row per family, then the sums, the reasons, and what is wrong."""
    rows = [*rows]
    done = [row for row in rows if "listed" in row]
    lines = []
    for zoo in ZOOS:
        own = [row for row in done if row["zoo"] == zoo]
        if not own:
            continue
        families = defaultdict(list)
        for row in own:
            families[row["kind"] if zoo == "timm" else f"{row['kind']}: {row['name']}"].append(row)
        lines += [
            f"\n### {zoo}\n",
            "| family | models | structures | erasable | parameters in them |",
            "|---|---|---|---|---|",
        ]
        for family, members in sorted(families.items()):
            listed, erasable = (sum(row[what] for row in members) for what in ("listed", "erasable"))
            share = sum(row["inside"] for row in members) / max(1, sum(row["params"] for row in members))
            lines.append(f"| {family} | {len(members)} | {listed} | {erasable} | {share:.0%} |")
    lines.append("\n### All\n")
    for zoo in ZOOS:
        own = [row for row in done if row["zoo"] == zoo]
        if own:
            some = sum(row["erasable"] > 0 for row in own)
            ratio = statistics.median(row["with_s"] / row["without_s"] for row in own)
            lines.append(
                f"* {zoo}: {len(own)} models, {sum(row['listed'] for row in own)} structures, "
                f"{sum(row['erasable'] for row in own)} erasable, at least one in {some} models; analysis with "
                f"`erase=True` takes {ratio:.2f} times as long without (median)."
            )
    for form in ("class", "program"):
        tried = [row[form] for row in done if form in row]
        exact = [one for one in tried if "erasable" in one and one["erased"]]
        wrong = [row for row in done if "wrong" in row.get(form, {})]
        lines.append(
            f"* {form}: {len(tried)} tried, {len(exact)} exact with something erased, {len(wrong)} wrong, "
            f"{sum('refused' in one for one in tried)} not exported."
        )
        lines += [f"  * {row['zoo']} {row['name']}: {row[form]['wrong']}" for row in wrong]
    reasons: Counter[str] = Counter()
    for row in done:
        reasons.update(row["refused"])
    lines += ["\n| why not erasable | structures |", "|---|---|"]
    lines += [f"| {reason} | {count} |" for reason, count in reasons.most_common(_MOST_REASONS)]
    failed = [row for row in rows if "error" in row]
    if failed:
        lines.append(f"\n{len(failed)} models without a result or with an unfinished one:\n")
        lines += [f"* {row['zoo']} {row['name']} ({row.get('stage')}): {row['error'][:200]}" for row in failed]
    return "\n".join(lines)
