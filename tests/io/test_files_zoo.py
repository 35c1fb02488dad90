"""A few models of the zoo through all files and a fresh process; `benchmarks/files.py` takes the others."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")
from benchmarks.files import journey


@pytest.mark.parametrize("name", ["llama", pytest.param("shufflenet_v2_x1_0", marks=pytest.mark.slow)])
def test_a_random_plan_comes_back_from_every_file(name: str, tmp_path: Path) -> None:
    found = journey(name, 3, tmp_path)
    assert found.loaded
    assert found.program <= 1e-4
    assert found.onnx <= 1e-4
