"""What a page about a pruned network says, whoever made it: the command line or a loop of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from niwaki.core.describe import percent
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.performance.measure import Latencies, Latency, Ratio
from niwaki.report.charts import Chart, Points, series
from niwaki.report.drawing import Drawing, drawing
from niwaki.report.run import RunReport
from niwaki.report.sentence import headline, short


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of figures: dense beside small, and how much is left; empty where it is not known."""

    name: str
    dense: str
    small: str
    left: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """Two networks that took turns: ``ratio`` is the small one's time over the dense one's."""

    dense: Latency
    small: Latency
    ratio: Ratio | None


@dataclass(frozen=True, slots=True)
class Kept:
    """A group: the units that it keeps of those that it had."""

    name: str
    kind: str
    kept: int
    units: int


@dataclass(frozen=True, slots=True)
class PageContent:
    """The content of a page, in its order. ``about``: a line under the headline. ``unit``: what the charts count.
    ``pruning``: the interval in which units leave. ``load``: code. ``details``: names and values."""

    title: str
    headline: str
    about: str
    rows: tuple[Row, ...]
    measured: tuple[Measured, ...]
    charts: tuple[Chart, ...]
    kept: tuple[Kept, ...]
    map: Drawing | None
    load: str
    notes: tuple[str, ...] = ()
    unit: str = "step"
    pruning: tuple[float, float] | None = None
    details: Mapping[str, str] = field(default_factory=dict)


def accuracies(report: RunReport) -> tuple[float | None, float]:
    """Of the dense network that was trained without pruning, where there is one, and of the small one."""
    if report.repair is not None:
        return report.dense.accuracy, report.small.accuracy
    return (None if report.baseline is None else report.baseline.accuracy), report.small.accuracy


def headline_of(report: RunReport) -> str:
    """What one would tell a colleague of this run. Its speed is that of the largest batch."""
    ratio = report.ratios[-1] if report.ratios else None
    return headline((report.dense.macs, report.small.macs), accuracies(report), ratio)


def content_of_run(report: RunReport, directory: str) -> PageContent:
    """The content for a run whose results lie in ``directory``."""
    dense, small, recipe = report.dense, report.small, report.recipe
    before, after = accuracies(report)
    unit = "step" if report.history and "step" in report.history[0] else "epoch"
    base = () if report.baseline is None else report.baseline.history
    pruning = None
    if report.history and "prune_start" in recipe and recipe["method"] != "none":
        last = report.history[-1][unit]
        pruning = recipe["prune_start"] * last, recipe["prune_until"] * last
    shape = "×".join(map(str, report.data["shape"]))
    notes = [
        f"The cut is exact: the small network equals the trained one whose removed units are zero, max. difference "
        f"{report.check['deviation']:.1e} (relative).",
        f"{percent(report.coverage)} of the parameters are prunable.",
    ]
    if before is None and recipe["method"] != "none":
        notes.append("How accurate the dense network would have become was not measured: --baseline trains it, too.")
    if report.repair is not None:
        notes.append(f"Cut, before the repair: {percent(report.repair['accuracy_before'])} accuracy.")
    epochs = f", {recipe['epochs']} epochs" if "epochs" in recipe else ""
    return PageContent(
        title=f"{recipe['model']} on {report.data['name']}",
        headline=headline_of(report),
        about=f"{recipe['method']}{epochs}, seed {recipe['seed']}; {report.seconds:,.0f} s on "
        f"{report.versions['device']}; {report.data['train']:,} training and {report.data['test']:,} test images of "
        f"{shape}, {report.data['classes']} classes",
        rows=(
            Row("test accuracy", "–" if before is None else percent(before), percent(after)),
            _cost("MACs, one image", dense.macs, small.macs),
            _cost("parameters", dense.params, small.params),
            _cost("bytes of weights", dense.memory, small.memory),
        ),
        measured=tuple(
            Measured(*pair, report.ratios[number] if report.ratios else None)
            for number, pair in enumerate(zip(dense.latency, small.latency, strict=True))
        ),
        charts=_charts(report.history, base, unit),
        kept=_kept(report.map) or tuple(Kept(name, "units", *both) for name, both in report.kept.items()),
        map=report.map,
        load=(
            f"import niwaki\n\nnetwork = niwaki.load_run({directory!r})\nscores = network(images)"
            f"  # images: [batch, {', '.join(map(str, report.data['shape']))}], pixels from 0 to 255"
        ),
        notes=tuple(notes),
        unit=unit,
        pruning=pruning,
        details={
            **{name.replace("_", " "): str(value) for name, value in recipe.items() if value is not None},
            **report.versions,
        },
    )


def content_of_plan(
    space: SearchSpace,
    plan: Plan,
    title: str,
    history: Sequence[Mapping[str, float]],
    accuracy: tuple[float | None, float | None],
    latency: Sequence[Latencies],
    load: str,
) -> PageContent:
    """The content for a plan that a loop of one's own, or `niwaki.choose`, has made."""
    dense, small = space.cost(), space.cost(plan)
    measured = [_small_of_dense(one) for one in latency]
    before, after = accuracy
    rows = [] if after is None else [Row("accuracy", "–" if before is None else percent(before), percent(after))]
    provenance: Mapping[str, Any] = plan.provenance
    told = {name: str(value) for name, value in provenance.items() if isinstance(value, str | int | float)}
    return PageContent(
        title=title,
        headline=headline((dense.macs, small.macs), accuracy, measured[-1].ratio if measured else None),
        about=", ".join(str(provenance[name]) for name in ("method", "criterion") if provenance.get(name)),
        rows=(
            *rows,
            _cost("MACs", dense.macs, small.macs),
            _cost("parameters", dense.params, small.params),
            _cost("bytes of weights", dense.memory, small.memory),
        ),
        measured=tuple(measured),
        charts=_charts(history, (), "step"),
        kept=_kept(drawn := drawing(space, title, plan)),
        map=drawn,
        load=load,
        notes=(f"{percent(space.coverage)} of the parameters are prunable.", *space.notes),
        details=told,
    )


def _small_of_dense(one: Latencies) -> Measured:
    """Ratios are of the first network: where that is the small one, the dense one's is turned round."""
    ratio = one.ratios["small"]
    if next(iter(one.networks)) == "small":
        other = one.ratios["dense"]
        ratio = Ratio(1 / other.median, 1 / other.upper, 1 / other.lower)
    return Measured(one.networks["dense"], one.networks["small"], ratio)


def _cost(name: str, dense: int, small: int) -> Row:
    return Row(name, short(dense), short(small), percent(small / dense) if dense else "")


def _charts(
    history: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]], unit: str
) -> tuple[Chart, ...]:
    """Accuracy, loss and MACs, as far as the history has them."""

    def points(name: str) -> tuple[Points, Points]:
        return series(history, name, unit), series(base, name, unit)

    found = []
    for name, title, form, tick, low, high in (
        ("accuracy", "accuracy", "{:.1%}", "{:.0%}", None, 1.0),
        ("loss", "training loss", "{:.3g}", "{:g}", 0.0, None),
        ("macs_left", "MACs left", "{:.0%}", "{:.0%}", 0.0, 1.0),
    ):
        values, dense = points(name)
        if values:
            beside = dense if name != "macs_left" else ()
            found.append(Chart(title, values, form.format, tick.format, beside, low, high))
    return tuple(found)


def _kept(drawn: Drawing | None) -> tuple[Kept, ...]:
    """The groups in the order of the network."""
    lines = () if drawn is None else drawn.lines
    return tuple(
        Kept(line.group.name, line.group.kind, line.group.units if line.kept is None else line.kept, line.group.units)
        for line in lines
    )
