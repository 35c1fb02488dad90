"""Run checkpoints in a process that has never heard of niwaki."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import niwaki

# In a fresh process, in another directory: the library alone, the checkpoint, and the inputs.
SCRIPT = """
import sys
import importlib.util
import torch
sys.modules["torchvision"] = None  # the one installed here may not fit the torch
assert importlib.util.find_spec("niwaki") is None, "niwaki is on the path"
import transformers
from safetensors.torch import load_file, save_file
for job in sys.argv[1:]:
    folder, auto = job.split("=")
    model, told = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    inputs = load_file(folder + "/inputs.test")
    with torch.no_grad():
        found = {"logits": model.eval()(**inputs).logits}
        if model.can_generate():
            ids = {"input_ids": inputs["input_ids"]}
            found["tokens"] = model.generate(**ids, max_new_tokens=6, do_sample=False, use_cache=True, pad_token_id=0)
    save_file(found, folder + "/outputs.test")
"""


def in_a_fresh_process(jobs: dict[Path, tuple[str, dict[str, Any]]]) -> dict[Path, dict[str, torch.Tensor]]:
    """Without niwaki: neither in the working directory nor installed there."""
    for folder, (_, inputs) in jobs.items():
        save_file(inputs, folder / "inputs.test")
    home = next(iter(jobs))
    finder = f"import sys; sys.path[:] = [p for p in sys.path if p != {str(Path(niwaki.__file__).parents[1])!r}]\n"
    finder += "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-I", "-c", finder + SCRIPT, *(f"{folder}={auto}" for folder, (auto, _) in jobs.items())],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {folder: load_file(folder / "outputs.test") for folder in jobs}


def greedy(model: Any, inputs: dict[str, Any], cache: bool) -> torch.Tensor:
    ids = {"input_ids": inputs["input_ids"]}
    made: torch.Tensor = model.generate(**ids, max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=0)
    return made
