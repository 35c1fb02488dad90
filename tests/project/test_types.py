"""What a type checker of the user's code learns from niwaki: a cut or loaded network has the class of the dense one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar, get_overloads, get_type_hints

import pytest

import niwaki

ROOT = Path(__file__).parents[2]
CODE = """
from torch import nn
from torch.export import ExportedProgram
import niwaki

class Net(nn.Module):
    width: int = 8

def use(net: Net, program: ExportedProgram, plan: niwaki.Plan) -> None:
    reveal_type(niwaki.cut(net, plan))
    reveal_type(niwaki.cut(program, plan))
    reveal_type(niwaki.cut(net, plan, as_graph=True))
    reveal_type(niwaki.load(net, "folder"))
    print(niwaki.cut(net, plan).width)
"""


@pytest.mark.parametrize("function", [niwaki.cut, niwaki.load])
def test_one_overload_returns_what_it_is_given(function: object) -> None:
    hints = [list(get_type_hints(overload).values()) for overload in get_overloads(function)]  # type: ignore[arg-type]
    assert [each[0] for each in hints if isinstance(each[-1], TypeVar)] == [
        each[-1] for each in hints if isinstance(each[-1], TypeVar)
    ]
    assert sum(isinstance(each[-1], TypeVar) for each in hints) == 1


@pytest.mark.slow
def test_mypy_reveals_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("mypy.api")
    (tmp_path / "user.py").write_text(CODE)
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    cache = ROOT / ".mypy_cache"  # that of `mypy` itself: nothing is analysed twice
    out, errors, status = api.run(
        ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", os.fspath(cache), str(tmp_path / "user.py")]
    )
    told = [line.split('"')[1] for line in out.splitlines() if "Revealed type" in line]
    program = "torch.export.exported_program.ExportedProgram"
    assert told == ["user.Net", program, program, "user.Net"], out
    assert status == 0, out + errors
