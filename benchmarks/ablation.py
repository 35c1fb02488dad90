"""What each thing that makes the analysis quicker buys: the zoo's models with all of them, and with one switched off.

    python -m benchmarks.ablation --every 15

Every n-th model of torchvision, timm and transformers is analysed in one process, first as it is, then with each part
switched off, round after round. Printed: the CPU time without the part over that with it, as quartiles over the models,
and whether the coverage stays. Needs torchvision, timm and transformers.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch

import niwaki
from benchmarks.zoo import of_timm, of_torchvision, of_transformers, operators
from niwaki.core import counts
from niwaki.solve.call_cache import Calls
from niwaki.trace import modes, shape_only

SEARCH = sys.modules[niwaki.search_space.__module__]


@contextmanager
def _collecting() -> Iterator[None]:
    """The garbage collector runs, as it does by default."""
    search = SEARCH.search_space
    with patch.object(gc, "disable", lambda: None):
        yield
    assert search is SEARCH.search_space


OFF: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "shape-only execution": lambda: patch.object(shape_only, "_WORTH", 2**62),
    "cache of calls": lambda: patch.object(Calls, "recall", lambda self, key: None),
    "no second run where the mode does not matter": lambda: patch.object(
        modes.ModeWatch, "alike", property(lambda self: False, lambda self, value: None), create=True
    ),
    "runs of counts": lambda: patch.object(counts, "_LONG", 2**62),
    "garbage collector waits": _collecting,
}


def analysed(model: torch.nn.Module, inputs: Any, off: AbstractContextManager[Any]) -> tuple[float, float]:
    """CPU seconds and coverage."""
    gc.collect()
    with off:
        begin = time.process_time()
        space = niwaki.search_space(model, inputs)
        return time.process_time() - begin, space.coverage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=15, help="take every n-th model; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts; default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    operators.prepare()
    entries = [e for zoo in (of_torchvision, of_timm, of_transformers) for e in zoo.entries() if not e.large]
    ratios: dict[str, list[float]] = {name: [] for name in OFF}
    changed: dict[str, list[str]] = {name: [] for name in OFF}
    models = 0
    for entry in entries[:: options.every]:
        torch.manual_seed(0)
        try:
            model, inputs = entry.build()
            analysed(model.eval(), inputs, nullcontext())
        except (
            ImportError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as cause:  # a model that this installation lacks something for
            print(f"{entry.name}: left out, {type(cause).__name__}", flush=True)
            continue
        models += 1
        seconds: dict[str, list[float]] = {name: [] for name in ("", *OFF)}
        for _ in range(options.rounds):
            for name in seconds:
                took, coverage = analysed(model, inputs, OFF[name]() if name else nullcontext())
                seconds[name].append(took)
                if not name:
                    whole = coverage
                elif coverage != whole and entry.name not in changed[name]:
                    changed[name].append(entry.name)
        for name in OFF:
            ratios[name].append(statistics.median(seconds[name]) / statistics.median(seconds[""]))
        print(entry.name, f"{statistics.median(seconds['']):.2f} s", flush=True)
    print(f"\n{models} models\n\n| without | 25 % | median | 75 % | most | coverage |\n|---|---|---|---|---|---|")
    for name, found in ratios.items():
        low, middle, high = statistics.quantiles(found, n=4)
        told = "the same" if not changed[name] else "differs: " + ", ".join(changed[name])
        print(f"| {name} | {low:.2f} | {middle:.2f} | {high:.2f} | {max(found):.2f} | {told} |")


if __name__ == "__main__":
    main()
