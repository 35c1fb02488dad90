"""Files under attack: writes fail, bytes flip, files end early, content is forged. One clear error, nothing lost."""

from __future__ import annotations

import copy
import errno
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from saved import IMAGES, Net, plan_for
from torch import Tensor, nn
from torch.export import export

import niwaki
from niwaki.errors import FileFormatError
from niwaki.io import format as file_format
from niwaki.io import writing

FILES = ("model.safetensors", "optimizer.safetensors", "plan.json", "program.json", "program.safetensors")


def trained(share: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Net().eval()
    small = niwaki.cut(model, plan_for(model, IMAGES, share))
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    small(IMAGES).sum().backward()
    optimizer.step()
    return small, optimizer


def outcome(directory: Path) -> tuple[Tensor, Tensor]:
    """What a directory holds: an output of the network and a state of the optimizer. All else must be untouched."""
    fresh = Net().eval()
    before = copy.deepcopy(fresh.state_dict())
    try:
        small = niwaki.load(fresh, directory)
    finally:
        assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    optimizer = torch.optim.SGD(small.parameters(), lr=0.5, momentum=0.9)
    try:
        niwaki.load_optimizer(optimizer, small, directory)
    except FileFormatError:
        assert not optimizer.state and optimizer.param_groups[0]["lr"] == 0.5
        raise
    return small(IMAGES), optimizer.state[small.head.weight].get("momentum_buffer")


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


OPERATIONS = {
    os: ("replace", "rename", "fsync", "mkdir", "chmod", "open"),
    writing: ("save_file",),
    Path: ("mkdir", "unlink", "chmod"),
}


class Failing:
    """Lets so many operations that change the disk succeed, and fails the next one."""

    def __init__(self, patch: pytest.MonkeyPatch, moment: int, error: Callable[[str], BaseException]) -> None:
        self.left, self.failed = moment, ""
        for owner, names in OPERATIONS.items():
            for name in names:
                patch.setattr(owner, name, self._guarded(getattr(owner, name), name, error))
        patch.setattr("builtins.open", self._guarded(open, "write", error))

    def _guarded(self, real: Callable[..., Any], name: str, error: Callable[[str], BaseException]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            reads = (name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR)) or (
                name == "write" and args[1] == "rb"
            )
            if not reads and not self.failed:
                if self.left == 0:
                    self.failed = name
                    raise error(name)
                self.left -= 1
            return real(*args, **kwargs)

        return call


def full(operation: str) -> BaseException:
    if operation == "save_file":
        return SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("exists", "error"),
    [(False, full), (True, full), (True, lambda _: KeyboardInterrupt())],
    ids=["new directory, disk full", "old directory, disk full", "old directory, interrupted"],
)
def test_any_operation_may_fail(exists: bool, error: Callable[[str], BaseException], tmp_path: Path) -> None:
    """Each operation on the disk fails in turn. What was there loads as before, or as what is new; no scrap is left."""
    (old, old_optimizer), (new, new_optimizer) = trained(0.7), trained(0.4)
    niwaki.save(old, tmp_path / "old", optimizer=old_optimizer)
    niwaki.save(new, tmp_path / "new", optimizer=new_optimizer)
    known = {name: outcome(tmp_path / name) for name in ("old", "new")}
    failed, found = [], set[str]()
    for moment in range(60):
        target = tmp_path / f"run{moment}" / "out"
        if exists:
            niwaki.save(old, target, optimizer=old_optimizer)
        kept = copy.deepcopy(new.state_dict())
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, moment, error)
            try:
                niwaki.save(new, target, optimizer=new_optimizer)
            except FileFormatError as told:
                assert "Cannot save to" in str(told) and ("No space left on device" in str(told))
            except KeyboardInterrupt:
                pass
        assert all(torch.equal(value, kept[name]) for name, value in new.state_dict().items())
        if not failing.failed:
            break
        failed.append(failing.failed)
        if target.exists():
            (name,) = [name for name, result in known.items() if same(outcome(target), result)]
            found.add(name)
            assert {entry.name for entry in target.iterdir()} <= {*FILES, *staged(target)}
        else:
            assert not exists
            found.add("nothing")
        assert {entry.name for entry in target.parent.iterdir()} <= {"out"} if target.parent.exists() else True
    else:
        raise AssertionError("the save was never allowed to finish")
    assert {"replace", "fsync", "save_file", "write", "chmod"} <= set(failed) and len(failed) > 15
    assert found == ({"old", "new"} if exists else {"nothing", "new"})


def staged(directory: Path) -> set[str]:
    """The staged names that the plan refers to."""
    data = json.loads((directory / "plan.json").read_text())
    keys = {"weights": "model.safetensors", "optimizer": "optimizer.safetensors"}
    return {file_format.staged_name(file, data[key]["sha256"]) for key, file in keys.items()}


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_is_told(exists: bool, tmp_path: Path) -> None:
    """For real: the system refuses to write more than so many bytes to a file, in a child process."""
    (old, old_optimizer), (new, new_optimizer) = trained(0.7), trained(0.4)
    niwaki.save(new, tmp_path / "size", optimizer=new_optimizer)
    for size in (0, *(entry.stat().st_size - 1 for entry in (tmp_path / "size").iterdir())):
        target = tmp_path / f"run{size}" / "out"
        if exists:
            niwaki.save(old, target, optimizer=old_optimizer)
            before = outcome(target)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
                niwaki.save(new, target, optimizer=new_optimizer)
            except FileFormatError as told:
                code = 0 if "Cannot save to" in str(told) and "File too large" in str(told) else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, size
        if exists:
            assert same(outcome(target), before)
            assert {entry.name for entry in target.iterdir()} <= set(FILES)
        else:
            assert not target.exists() and not list(target.parent.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("saved")
    small, optimizer = trained(0.5)
    niwaki.save(small, directory, optimizer=optimizer, program=export(small, (IMAGES,)))
    assert sorted(entry.name for entry in directory.iterdir()) == list(FILES)
    yield directory


def read_all(directory: Path) -> tuple[Tensor, ...]:
    return *outcome(directory), niwaki.load_program(directory).module()(IMAGES)


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, Callable[[bytes], bytes]]:
    """A file, and what happens to its content."""
    file, place, bit = draw(st.sampled_from(FILES)), draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 7))

    def flipped(content: bytes) -> bytes:
        where = int(place * len(content))
        return content[:where] + bytes([content[where] ^ (1 << bit)]) + content[where + 1 :]

    def truncated(content: bytes) -> bytes:
        return content[: int(place * len(content))]

    def grown(content: bytes) -> bytes:
        return content + bytes([bit + 1]) * (1 + int(place * 20))

    def swapped(content: bytes) -> bytes:
        where = int(place * len(content))
        return content[where:] + content[:where]

    return file, draw(st.sampled_from([flipped, flipped, truncated, grown, swapped]))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damages())
def test_damaged_bytes_are_told(damage: tuple[str, Callable[[bytes], bytes]], saved: Path) -> None:
    file, change = damage
    intact = (saved / file).read_bytes()
    (saved / file).write_bytes(change(intact))
    try:
        result = read_all(saved)
    except FileFormatError as told:
        assert file in str(told)
        return
    finally:
        (saved / file).write_bytes(intact)
    # JSON has bytes that carry nothing: white space between its tokens.
    assert change(intact).split() == intact.split() or json.loads(change(intact)) == json.loads(intact), file
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(result, read_all(saved), strict=True))


ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        10**30,
        0.5,
        "",
        "../../etc/passwd",
        "\x00",
        [],
        [[]],
        [-1],
        {},
        {"tensor": "no"},
        {"a": 1, "b": 2},
    ]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from places(child, (*path, key))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.floats(0, 1, exclude_max=True), odd=ODD, remove=st.booleans(), deep=st.booleans())
def test_forged_plans_are_told(choice: float, odd: Any, remove: bool, deep: bool, saved: Path) -> None:
    """Some value of ``plan.json`` is another, and the checksum is right: anything may be in it, nothing may happen."""
    intact = (saved / "plan.json").read_bytes()
    data = json.loads(intact)
    keys = ("weights", "optimizer", "program", "constants", "directory", "provenance")
    found = [path for path in places(data) if path and (path[0] in keys or not deep) and path[0] != "checksum"]
    *way, last = found[int(choice * len(found))]
    owner = data
    for key in way:
        owner = owner[key]
    if remove:
        del owner[last]
    else:
        owner[last] = odd
    data["checksum"] = file_format.checksum(data)
    (saved / "plan.json").write_text(json.dumps(data))
    try:
        read_all(saved)
    except FileFormatError as told:
        assert len(str(told)) > 30
    finally:
        (saved / "plan.json").write_bytes(intact)


def test_no_file_outside_the_directory_is_touched(saved: Path, tmp_path: Path) -> None:
    """A digest becomes part of a file name: one that climbs out of the directory is refused."""
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes((saved / "model.safetensors").read_bytes())
    inside = tmp_path / "inside"
    small, optimizer = trained(0.5)
    niwaki.save(small, inside, optimizer=optimizer)
    (inside / ".model-").mkdir()
    data = json.loads((inside / "plan.json").read_text())
    for key in ("weights", "optimizer"):
        forged = copy.deepcopy(data)
        forged[key]["sha256"] = "/../../secret"
        forged["checksum"] = file_format.checksum(forged)
        (inside / "plan.json").write_text(json.dumps(forged))
        with pytest.raises(
            FileFormatError, match=r"does not describe (model|optimizer).safetensors as niwaki.save does"
        ):
            niwaki.load(Net(), inside)
    (inside / ".model-").rmdir()
    niwaki.save(small, inside, optimizer=optimizer)
    assert secret.exists() and not list(inside.glob(".*"))


def test_deep_nesting_is_told(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("[" * 100_000)
    with pytest.raises(FileFormatError, match="plan.json"):
        niwaki.load(Net(), tmp_path)


@pytest.mark.parametrize("name", ["a*b", "[x]", "ü\n x", ".hidden", "a" * 200, "-rf", "plan.json"])
def test_odd_names_of_directories(name: str, tmp_path: Path) -> None:
    bystander = tmp_path / ".axb.12345678.tmp"
    bystander.mkdir()
    small, optimizer = trained(0.5)
    for _ in range(2):
        niwaki.save(small, tmp_path / name, optimizer=optimizer)
    assert torch.equal(outcome(tmp_path / name)[0], small(IMAGES))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([bystander.name, name])


def test_names_that_are_no_directories(tmp_path: Path) -> None:
    small, _ = trained(0.5)
    with pytest.raises(FileFormatError, match="Cannot save to '.*': File name too long. Name a directory"):
        niwaki.save(small, tmp_path / ("a" * 300))
    with pytest.raises(FileFormatError, match="Cannot save to '.*'"):
        niwaki.save(small, tmp_path / "no\x00name")
    with pytest.raises(FileFormatError, match="There is no directory|cannot be read"):
        niwaki.load(Net(), tmp_path / "no\x00name")
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(FileFormatError, match="has no plan.json"):
        niwaki.load(Net(), tmp_path)
    with pytest.raises(FileFormatError, match="Cannot save to '.*': Is a directory"):
        niwaki.save(small, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


def test_symbolic_links_are_replaced_and_not_written_through(tmp_path: Path) -> None:
    small, _ = trained(0.5)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    for name in ("model.safetensors", "plan.json"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "mine")
    niwaki.save(small, tmp_path / "out")
    assert (tmp_path / "mine").read_text() == "mine"
    assert torch.equal(niwaki.load(Net().eval(), tmp_path / "out")(IMAGES), small(IMAGES))
