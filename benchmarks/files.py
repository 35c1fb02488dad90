"""The zoo through files: random plans, saved, loaded in a fresh process, exported to torch.export and ONNX, and run.

python benchmarks/files.py [--plans 1] [--only resnet18 llama]

Loaded: the network that a fresh process builds, cuts and fills gives the same bits. Program and ONNX: the largest
difference of an output, relative to its largest value; more than 1e-4 is a failure. Bytes: of model.safetensors.
torch 2.13 cannot write T5 as ONNX, dense or cut: its difference is infinite, a failure as any other.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

TESTS = Path(__file__).parents[1] / "tests" / "helpers"
sys.path.insert(0, str(TESTS))

from zoo import ZOO  # noqa: E402

import niwaki  # noqa: E402
from niwaki.errors import ExportError  # noqa: E402
from niwaki.testing.models import random_plan, randomised  # noqa: E402
from niwaki.trace.structures import tensors_in  # noqa: E402

# Plain tuples: the classes that transformers returns would need transformers where the program is loaded.
_PLAIN = {"use_cache": False, "return_dict": False}

_FRESH = """
import sys
folder, name, tests, root = sys.argv[1:]
sys.path[:0] = [tests, root]
import torch, niwaki
from safetensors.torch import save_file
torch.set_num_threads(1)
program = niwaki.load_program(folder)
assert "transformers" not in sys.modules and "timm" not in sys.modules
from benchmarks.files import called, inputs_of, outputs
from zoo import ZOO
torch.manual_seed(7)
inputs = inputs_of(name)
small = niwaki.load(ZOO[name].build().eval(), folder)
save_file(outputs(small, inputs), folder + "/loaded.outputs")
save_file(outputs(program.module(), inputs), folder + "/program.outputs")
"""


@dataclass(frozen=True)
class Journey:
    """``loaded``: whether all bits came back. ``program``, ``onnx``: relative differences. ``bytes``: of weights.
    ``onnx`` is infinite where torch cannot write the network, and ``told`` what it says."""

    loaded: bool
    program: float
    onnx: float
    bytes: int
    told: str = ""


def inputs_of(name: str) -> Any:
    """The example inputs of a model of the zoo, with outputs that any process knows."""
    inputs = ZOO[name].inputs()
    if not isinstance(inputs, dict):
        return inputs
    return {**inputs, **(_PLAIN if name != "bert" else {"return_dict": False})}


def called(model: Any, inputs: Any) -> Any:
    """The result of a call."""
    with torch.no_grad():
        return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def outputs(model: Any, inputs: Any) -> dict[str, Tensor]:
    """All tensors of the result, numbered."""
    found = [tensor.contiguous().clone() for tensor in tensors_in(called(model, inputs))]
    return {str(number): tensor for number, tensor in enumerate(found)}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of an output, relative to its largest value."""
    assert found.keys() == expected.keys()
    return max(
        float((found[k].double() - v.double()).abs().max() / v.double().abs().max().clamp_min(1e-30))
        for k, v in expected.items()
    )


def journey(name: str, plan_seed: int, folder: Path) -> Journey:
    """One random plan of one model through all files."""
    torch.manual_seed(0)
    model, inputs = randomised(ZOO[name].build().eval()), inputs_of(name)
    plan = random_plan(niwaki.search_space(model, inputs), np.random.default_rng(plan_seed))
    small: nn.Module = niwaki.cut(model, plan)
    told = ""
    try:
        program = niwaki.export(small, inputs, folder / "small.onnx")
    except ExportError as cause:
        program, told = niwaki.export(small, inputs), str(cause)
    niwaki.save(small, folder, program=program)
    root = Path(niwaki.__file__).parents[1]
    subprocess.run([sys.executable, "-c", _FRESH, str(folder), name, str(TESTS), str(root)], check=True)
    expected = outputs(small, inputs)
    ran = None if told else _by_onnxruntime(folder / "small.onnx", inputs)
    loaded = load_file(folder / "loaded.outputs")
    return Journey(
        loaded=loaded.keys() == expected.keys() and all(torch.equal(loaded[k], v) for k, v in expected.items()),
        program=difference(load_file(folder / "program.outputs"), expected),
        onnx=math.inf if ran is None else difference(ran, expected),
        bytes=(folder / "model.safetensors").stat().st_size,
        told=told,
    )


def _by_onnxruntime(path: Path, inputs: Any) -> dict[str, Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tensors = iter(tensors_in(inputs))
    feed = {item.name: next(tensors).numpy() for item in session.get_inputs()}
    return {str(number): torch.from_numpy(value) for number, value in enumerate(session.run(None, feed))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", type=int, default=1, help="random plans per model")
    parser.add_argument("--only", nargs="*", default=list(ZOO))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | plans | loaded in a fresh process | program | ONNX Runtime | bytes |")
    print("|---|---|---|---|---|---|")
    failed = False
    for name in options.only:
        found = []
        for seed in range(options.plans):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found.append(journey(name, seed, Path(folder)))
                except niwaki.NiwakiError as cause:
                    failed = True
                    print(f"| {name} | {seed} | {type(cause).__name__}: {str(cause)[:300]} | | | |", flush=True)
        if found:
            same = all(one.loaded for one in found)
            program, onnx = (max(getattr(one, what) for one in found) for what in ("program", "onnx"))
            failed |= not same or not max(program, onnx) <= 1e-4
            for told in {one.told.splitlines()[0] for one in found if one.told}:
                print(f"{name}: {told}", file=sys.stderr)
            print(
                f"| {name} | {len(found)} | {'identical' if same else 'DIFFERENT'} | {program:.0e} | {onnx:.0e} | "
                f"{max(one.bytes for one in found):,} |",
                flush=True,
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()
