"""Checkpoints of anybody's loop: to the same bits, never torn, the last few of them."""

from __future__ import annotations

import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saved import IMAGES, Net, assert_same, die_at
from torch import Tensor, nn

import niwaki
from niwaki.errors import FileFormatError, MethodError


def start(method: bool = True) -> tuple[dict[str, Any], Any]:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    if method:
        space = niwaki.search_space(model, IMAGES)
        niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.6), niwaki.Schedule(start=2, until=14))
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}, None


def advance(parts: dict[str, Any], first: int, last: int) -> Tensor:
    """Steps that draw from all three random generators."""
    loss = torch.zeros(())
    for _ in range(first, last):
        x = IMAGES + torch.randn_like(IMAGES) * random.random() + float(np.random.rand())
        parts["optimizer"].zero_grad()
        loss = parts["model"](x).square().mean()
        loss.backward()
        parts["optimizer"].step()
        parts["scheduler"].step()
    return loss.detach()


def test_a_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("pickle was used")

    parts, _ = start()
    checkpoints = niwaki.Checkpoints(tmp_path / "run")
    assert checkpoints.latest is None
    advance(parts, 0, 7)
    with monkeypatch.context() as patch:
        for name in ("dump", "dumps", "load", "loads", "Unpickler", "Pickler"):
            patch.setattr(pickle, name, refuse)
        checkpoints.save(7, parts, {"epoch": 1, "order": torch.arange(3)})
    whole = advance(parts, 7, 18)
    fresh, _ = start()
    random.seed(5)
    step, position = niwaki.Checkpoints(tmp_path / "run").load(fresh)
    assert (
        step == checkpoints.latest == 7 and position["epoch"] == 1 and torch.equal(position["order"], torch.arange(3))
    )
    assert torch.equal(advance(fresh, 7, 18), whole)
    for name in parts:
        assert_same(fresh[name].state_dict(), parts[name].state_dict())
    assert fresh["optimizer"].state_dict()["niwaki"]["step"] == 18


def test_the_last_few_stay(tmp_path: Path) -> None:
    parts, _ = start(method=False)
    checkpoints = niwaki.Checkpoints(tmp_path, keep=3)
    (tmp_path / "notes.txt").write_text("mine")
    for step in (1, 2, 5, 9, 100_000_000):
        checkpoints.save(step, parts)
    names = ["notes.txt", "step-00000005", "step-00000009", "step-100000000"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names
    checkpoints.save(9, parts, "again")  # of a run that went back: what it has overtaken goes
    assert sorted(e.name for e in tmp_path.iterdir()) == [*names[:3], "step-00000009.1"]
    assert checkpoints.load(parts) == (9, "again")
    checkpoints.save(9, parts, "again")  # the same: nothing to write
    assert sorted(e.name for e in tmp_path.iterdir()) == [*names[:3], "step-00000009.1"]
    with pytest.raises(FileFormatError, match="keep=0 must be 1 or more"):
        niwaki.Checkpoints(tmp_path, keep=0)
    for step in (-1, 1.5, True):
        with pytest.raises(FileFormatError, match=f"step={step} must be a whole number"):
            checkpoints.save(step, parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(keep: int, tmp_path: Path) -> None:
    """Every operation that changes the disk is killed in turn, in a child process as a kill is."""
    parts, _ = start(method=False)
    seen = set()
    for moment in range(40):
        checkpoints = niwaki.Checkpoints(tmp_path / str(moment), keep=keep)
        checkpoints.save(1, parts, "old")
        if moment % 2:  # written again
            checkpoints.save(2, parts, "middle")
        child = os.fork()
        if child == 0:
            die_at(moment // 2)
            try:
                checkpoints.save(2, parts, "new")
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        seen.add(checkpoints.load(parts)[1])
        if os.waitstatus_to_exitcode(status) == 0:
            break
        checkpoints.save(3, parts, "next")
        assert not list(checkpoints.directory.glob(".*"))
    assert seen == {"old", "middle", "new"} and moment >= 8


def test_what_does_not_fit_is_told_and_changes_nothing(tmp_path: Path) -> None:
    parts, _ = start()
    checkpoints = niwaki.Checkpoints(tmp_path)
    with pytest.raises(FileFormatError, match="There is no checkpoint in"):
        checkpoints.load(parts)
    advance(parts, 0, 3)
    checkpoints.save(3, parts)
    bare, _ = start(method=False)
    wide = {**bare, "model": Net(9)}
    other, _ = start()
    space = niwaki.search_space(wide["model"], IMAGES)
    wrong = torch.optim.AdamW(other["model"].parameters())
    niwaki.DHSPG(
        niwaki.search_space(other["model"], IMAGES), wrong, niwaki.Budget(macs=0.6), niwaki.Schedule(start=2, until=14)
    )
    assert space.num_units
    for here, error, message in (
        ({"model": bare["model"]}, FileFormatError, "has the parts model, optimizer, scheduler, and here are model"),
        (wide, FileFormatError, r"is of another model: 'conv1.weight' was \[8, 3, 3, 3\] and is \[9, 3, 3, 3\]. Build"),
        ({**other, "optimizer": wrong}, MethodError, "The checkpoint was made by hesso with"),
        (
            {**bare, "optimizer": torch.optim.SGD([bare["model"].head.bias])},
            FileFormatError,
            "does not fit: ValueError",
        ),
    ):
        before = {name: _frozen(part.state_dict()) for name, part in here.items()}
        drawn = torch.get_rng_state()
        with pytest.raises(error, match=message):
            checkpoints.load(here)
        assert {name: _frozen(part.state_dict()) for name, part in here.items()} == before
        assert torch.equal(torch.get_rng_state(), drawn)
    with pytest.raises(FileFormatError, match=r"Cannot save 'state.position.loader': it is a object"):
        checkpoints.save(4, parts, {"loader": object()})
    assert checkpoints.latest == 3 and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="Cannot save to '.*file'"):
        niwaki.Checkpoints(tmp_path / "file").save(1, parts)


def _frozen(state: Any) -> str:
    from niwaki.io.tree import encode

    tensors: dict[str, Tensor] = {}
    return json.dumps([encode(state, "x", tensors), {name: value.tolist() for name, value in tensors.items()}])


def test_damage_is_told(tmp_path: Path) -> None:
    parts, _ = start(method=False)
    checkpoints = niwaki.Checkpoints(tmp_path)
    checkpoints.save(1, parts, 1)
    checkpoints.save(2, parts, 2)
    last = tmp_path / "step-00000002"
    for name in ("state.json", "tensors.safetensors"):
        intact = (last / name).read_bytes()
        for position in (0, len(intact) // 3, len(intact) // 2, len(intact) - 1):
            for content in (
                intact[:position] + bytes([intact[position] ^ 4]) + intact[position + 1 :],
                intact[:position],
            ):
                (last / name).write_bytes(content)
                with pytest.raises(FileFormatError, match=r"step-00000002.*Remove its directory to continue from"):
                    checkpoints.load(parts)
        (last / name).write_bytes(intact)
    assert checkpoints.load(parts) == (2, 2)
    (last / "state.json").unlink()
    with pytest.raises(FileFormatError, match="cannot be read: FileNotFoundError"):
        checkpoints.load(parts)


def test_a_shrunk_model_goes_on(tmp_path: Path) -> None:
    parts, _ = start(method=False)
    model, optimizer = parts["model"], parts["optimizer"]
    advance(parts, 0, 2)
    space = niwaki.search_space(model, IMAGES)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(params=0.5))
    niwaki.shrink(model, plan, optimizer=optimizer)
    advance(parts, 2, 4)
    checkpoints = niwaki.Checkpoints(tmp_path)
    checkpoints.save(4, parts)
    expected = advance(parts, 4, 6)
    fresh, _ = start(method=False)
    with pytest.raises(
        FileFormatError, match=r"had been cut or shrunk: cut it again by Checkpoints.plan\('model'\) first"
    ):
        checkpoints.load(fresh)
    kept = checkpoints.plan()
    assert kept is not None
    niwaki.shrink(fresh["model"], kept, optimizer=fresh["optimizer"])
    checkpoints.load(fresh)
    assert torch.equal(advance(fresh, 4, 6), expected)


def test_moments_in_another_dtype_come_back(tmp_path: Path) -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    for state in optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].float() + 1e-5
    niwaki.Checkpoints(tmp_path).save(1, {"optimizer": optimizer})
    before = _frozen(optimizer.state_dict())
    optimizer.state.clear()
    niwaki.Checkpoints(tmp_path).load({"optimizer": optimizer})
    assert _frozen(optimizer.state_dict()) == before


def test_checkpoints_of_the_first_format_are_read(tmp_path: Path) -> None:
    """They had no checksum of their own, and wrote infinity as Python does."""
    parts, _ = start(method=False)
    checkpoints = niwaki.Checkpoints(tmp_path)
    checkpoints.save(2, parts, {"best": float("inf")})
    file = tmp_path / "step-00000002" / "state.json"
    content = json.loads(file.read_text())
    del content["checksum"]
    content["format"] = 1
    text = json.dumps(content).replace('{"float": "inf"}', "Infinity")
    assert "Infinity" in text
    file.write_text(text)
    assert checkpoints.load(parts) == (2, {"best": float("inf")})
