"""Analysis of language models of their real size: parameters on the meta device, each shape in a process of its own.

python benchmarks/scale.py [--match llama] [--layers 4]

Prints the seconds of `niwaki.search_space` (CPU time of one thread, and wall), the peak memory of the whole process,
imports included, the milliseconds of cost(plan), and the seconds of a plan that keeps half of every group and of its
cut, which is checked: on the meta device, with as many parameters as the plan's cost says.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
# Where nothing else is given, the settings are the library's own, which are those of Mixtral-8x7B and DeepSeek-V3.
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "llama-3-70b": ("LlamaForCausalLM", _LLAMA_70B),
    "mixtral-8x7b": ("MixtralForCausalLM", {"num_hidden_layers": 32, "num_local_experts": 8}),
    "deepseek-v3": ("DeepseekV3ForCausalLM", {"num_hidden_layers": 61, "n_routed_experts": 256}),
}
_TOKENS = 8


def measure(name: str, layers: int | None) -> dict[str, Any]:
    """The figures of one shape, in this process."""
    import numpy as np
    import torch

    from niwaki.networks.torchvision_cpu import load

    load()
    import transformers

    import niwaki

    torch.set_num_threads(1)
    kind, settings = SHAPES[name]
    if layers is not None:
        settings = settings | {"num_hidden_layers": layers}
    with torch.device("meta"):
        model = getattr(transformers, kind)
        model = model(model.config_class(**settings))
    inputs = {"input_ids": torch.arange(_TOKENS)[None]}
    space, cpu, wall = _timed(lambda: niwaki.search_space(model, inputs))
    keep = np.ones(space.num_units, dtype=bool)
    tied = {number for tie in space.ties for number in tie.groups}
    leaving = {number: group.units // 2 for number, group in enumerate(space.groups) if number not in tied}
    for tie in space.ties:
        leaving |= {number: tie.most // 2 * step for number, step in zip(tie.groups, tie.steps, strict=True)}
    for number, gone in leaving.items():
        keep[space.groups[number].first : space.groups[number].first + gone] = False
    plan, plan_cpu, _ = _timed(lambda: space.plan(keep))
    space.cost(plan)
    costs = [_timed(lambda: space.cost(plan))[1] for _ in range(9)]
    small, cut_cpu, _ = _timed(lambda: niwaki.cut(model, plan))
    tensors = [*small.parameters(), *small.buffers()]
    kept = sum(parameter.numel() for parameter in small.parameters())
    assert all(parameter.is_meta for parameter in small.parameters()), "the cut has materialised parameters"
    assert kept == space.cost(plan).params, "the cut has not as many parameters as its cost says"
    return {
        "params": space.cost().params,
        "units": space.num_units,
        "groups": len(space.groups),
        "coverage": space.coverage,
        "analysis_cpu_s": cpu,
        "analysis_wall_s": wall,
        "peak_GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "cost_ms": statistics.median(costs) * 1000,
        "plan_cpu_s": plan_cpu,
        "cut_cpu_s": cut_cpu,
        "cut_params": kept,
        "real_bytes_after_cut": sum(tensor.nbytes for tensor in tensors if not tensor.is_meta),
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Print a line of JSON per shape, then a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--match", default="", help="only shapes whose name contains this regular expression")
    parser.add_argument("--layers", type=int, default=None, help="another number of layers, for a quick run")
    parser.add_argument("--here", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here is not None:
        print(json.dumps(measure(options.here, options.layers)))
        return
    more = [] if options.layers is None else ["--layers", str(options.layers)]
    print(f"{'shape':<14}{'parameters':>18}{'coverage':>10}{'CPU s':>8}{'wall s':>8}{'peak GB':>9}{'cost ms':>9}")
    for name in SHAPES:
        if re.search(options.match, name):
            command = [sys.executable, __file__, "--here", name, *more]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name:<14}{row['params']:>18,}{row['coverage']:>10.3f}{row['analysis_cpu_s']:>8.1f}"
                f"{row['analysis_wall_s']:>8.1f}{row['peak_GB']:>9.2f}{row['cost_ms']:>9.2f}"
            )
            print("  " + json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
