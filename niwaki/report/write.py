"""`niwaki.report`: write the page of a pruned network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace, check_space
from niwaki.errors import MethodError
from niwaki.io.atomic import write_atomically
from niwaki.performance.measure import Latencies
from niwaki.report.content import PageContent, content_of_plan, content_of_run
from niwaki.report.given import accuracies_of, history_of, is_page, latencies_of, place_of
from niwaki.report.run import RunReport, read_report
from niwaki.report.run_page import run_page
from niwaki.surgery.history import check_plan

PAGE_FILE = "report.html"


def report(
    where: str | os.PathLike[str],
    space: SearchSpace | None = None,
    plan: Plan | None = None,
    *,
    title: str = "A pruned network",
    history: Sequence[Mapping[str, float]] = (),
    accuracy: tuple[float | None, float | None] = (None, None),
    latency: Latencies | Sequence[Latencies] = (),
    load: str = "",
) -> Path:
    """Write a page about a pruned network: one HTML file that needs no other, no script and no network.

    ``niwaki.report("out/")`` is for a directory of `niwaki train` or `niwaki prune`, which write the page anyway. A
    loop of your own passes what it knows; the page shows what it is given.

    Args:
        where: a directory, for ``report.html`` in it, or the name of an ``.html`` file.
        space: the search space of the dense network.
        plan: what is kept of it.
        title: the title of the page.
        history: an entry for each epoch, or however often, with ``"step"`` and any of ``"accuracy"``, ``"loss"`` and
            ``"macs_left"``; fractions, not per cent.
        accuracy: of the dense network and of the small one, as fractions; None where it is not known.
        latency: of both, ``niwaki.latency({"dense": model, "small": small}, x)``, for one batch or several.
        load: code that loads the network, which the page shows.

    Returns:
        The path of the page.

    Raises:
        FileFormatError: without a space: the directory holds no report of a run.
        MethodError: only one of space and plan is given, or something that a page cannot show truly: no fractions,
            values that are not finite, latencies without a dense or a small network.
        PlanError: the plan is of another network.

    Example:
        >>> import tempfile, torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> space = niwaki.search_space(net, torch.randn(1, 4))
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     page = niwaki.report(directory, space, plan, accuracy=(0.98, 0.97)).read_text()
        >>> "2.0 times fewer MACs, 98.0 → 97.0 % accuracy" in page
        True
    """
    path = place_of(where)
    if (space is None) is not (plan is None):
        raise MethodError("niwaki.report needs both a search space and a plan of it, or a directory of a run alone.")
    if space is None or plan is None:
        directory = path.parent if is_page(path) else path
        return write_page(path, content_of_run(read_report(directory), os.fspath(directory)))
    check_space(space)
    check_plan(plan)
    given = history_of(history), accuracies_of(accuracy), latencies_of(latency)
    return write_page(path, content_of_plan(space, plan, title, *given, load))


def write_run_page(run: RunReport, directory: Path) -> Path:
    """Write the page of a run into its directory."""
    return write_page(directory, content_of_run(run, os.fspath(directory)))


def write_page(where: Path, content: PageContent) -> Path:
    """Write a page to a file, or as ``report.html`` into a directory."""
    path = where if is_page(where) else where / PAGE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, run_page(content).encode())
    return path
