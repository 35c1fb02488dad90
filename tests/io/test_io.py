"""Saved networks: no pickle, atomic, checked, and they come back as they were."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import IMAGES, TOKENS, Net, Tied, die_at, plan_for
from torch import Tensor, nn

import niwaki
from niwaki import io
from niwaki.core.edits import Edit, Keep, Rescale, SetAttribute, SetScalar
from niwaki.core.plan import Plan
from niwaki.errors import FileFormatError, PlanError
from niwaki.io import format as file_format
from niwaki.io.atomic import sha256_of
from niwaki.surgery.history import plan_of


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    return Net().eval()


@pytest.fixture
def small(model: nn.Module) -> nn.Module:
    return niwaki.cut(model, plan_for(model, IMAGES))


def test_round_trip(small: nn.Module, tmp_path: Path) -> None:
    niwaki.save(small, tmp_path / "out")
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["model.safetensors", "plan.json"]
    fresh = Net().eval()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    loaded = niwaki.load(fresh, tmp_path / "out")
    assert torch.equal(loaded(IMAGES), small(IMAGES))
    assert loaded.conv1.out_channels == small.conv1.out_channels < 8
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_a_loaded_network_can_be_saved_again(small: nn.Module, tmp_path: Path) -> None:
    niwaki.save(small, tmp_path / "one")
    niwaki.save(niwaki.load(Net(), tmp_path / "one"), tmp_path / "two")
    for name in ("model.safetensors", "plan.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_plan_file_is_a_plan(small: nn.Module, tmp_path: Path) -> None:
    niwaki.save(small, tmp_path)
    plan = Plan.from_json((tmp_path / "plan.json").read_text())
    assert plan.to_json() == io.read_plan(tmp_path).to_json()


def test_saving_reads_only(small: nn.Module, tmp_path: Path) -> None:
    small.train()
    small(IMAGES).sum().backward()
    tensors = {name: (id(value), value.data_ptr(), value._version) for name, value in small.named_parameters()}
    values = copy.deepcopy(small.state_dict())
    attributes = {name: dict(vars(module)) for name, module in small.named_modules()}
    niwaki.save(small, tmp_path)
    assert small.training
    assert {n: (id(v), v.data_ptr(), v._version) for n, v in small.named_parameters()} == tensors
    assert all(torch.equal(values[name], value) for name, value in small.state_dict().items())
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert {name: dict(vars(module)) for name, module in small.named_modules()} == attributes


def test_nothing_is_pickled(small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    niwaki.save(small, tmp_path)
    niwaki.load(Net(), tmp_path)


def test_dtype_and_layout_are_kept(small: nn.Module, tmp_path: Path) -> None:
    half = small.to(torch.bfloat16, memory_format=torch.channels_last)
    niwaki.save(half, tmp_path)
    loaded = niwaki.load(Net(), tmp_path)
    assert loaded.conv1.weight.dtype == torch.bfloat16
    assert loaded.norm.num_batches_tracked.dtype == torch.int64
    for name, value in half.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model = Tied().eval()
    small = niwaki.cut(model, plan_for(model, TOKENS, 0.8))
    niwaki.save(small, tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["weights"]["tied"] == {"out.weight": "embed.weight"}
    assert "out.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = niwaki.load(Tied().eval(), tmp_path)
    assert loaded.out.weight is loaded.embed.weight
    assert torch.equal(loaded(TOKENS), small(TOKENS))


def test_a_copy_knows_its_plan(small: nn.Module, tmp_path: Path) -> None:
    niwaki.save(copy.deepcopy(small), tmp_path / "out")
    assert torch.equal(niwaki.load(Net().eval(), tmp_path / "out")(IMAGES), small(IMAGES))


def test_a_network_that_niwaki_did_not_cut_needs_its_plan(small: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="network without a plan.*as `plan=`"):
        niwaki.save(Net(4), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    twin = Net()
    for name, module in small.named_children():
        setattr(twin, name, module)
    plan = plan_of(small)
    assert plan_of(twin) is None and plan is not None
    niwaki.save(twin, tmp_path / "out", plan=plan)
    assert torch.equal(niwaki.load(Net().eval(), tmp_path / "out")(IMAGES), small(IMAGES))


def test_state_that_is_no_tensor_is_refused(model: nn.Module, tmp_path: Path) -> None:
    class Extra(Net):
        def get_extra_state(self) -> object:
            return {"step": 1}

        def set_extra_state(self, state: object) -> None:
            pass

    extra = Extra().eval()
    small = niwaki.cut(extra, plan_for(extra, IMAGES))
    with pytest.raises(FileFormatError, match="'_extra_state': the module has a dict in its state"):
        niwaki.save(small, tmp_path / "out")


def test_cannot_save_onto_a_file(small: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FileFormatError, match="is a file. Name a directory"):
        niwaki.save(small, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


class Remembering(Net):
    """Computes with buffers that are not in its ``state_dict``; one grows, and one is made by the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(8), persistent=False)
        self.register_buffer("turns", torch.ones(2, dtype=torch.complex64), persistent=False)
        self.register_buffer("seen", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv1(x))) * self.scale[:, None, None]
        return self.head(torch.relu(self.conv2(x)).mean((2, 3))) * self.turns.real.mean()


def test_buffers_outside_the_state_are_saved(tmp_path: Path) -> None:
    model = Remembering().eval()
    small = niwaki.cut(model, plan_for(model, IMAGES))
    assert "scale" not in small.state_dict() and len(small.scale) < 8
    small.scale.uniform_(2, 3)
    small.turns.mul_(3)
    small.seen = torch.arange(5.0)
    small.conv1.register_buffer("late", torch.ones(3), persistent=False)
    niwaki.save(small, tmp_path)
    loaded = niwaki.load(Remembering().eval(), tmp_path)
    assert torch.equal(loaded(IMAGES), small(IMAGES))
    mine, theirs = dict(loaded.named_buffers()), dict(small.named_buffers())
    assert mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert loaded.state_dict().keys() == small.state_dict().keys()


def test_files_without_those_buffers_load(tmp_path: Path) -> None:
    model = Remembering().eval()
    small = niwaki.cut(model, plan_for(model, IMAGES))
    niwaki.save(small, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    outside = sorted(tensors.keys() - small.state_dict().keys())
    assert outside == ["scale", "seen", "turns"]
    save_file({name: tensors[name] for name in tensors if name not in outside}, tmp_path / "model.safetensors")

    def as_before(data: dict[str, object]) -> None:
        weights = data["weights"]
        assert isinstance(weights, dict) and weights.pop("buffers") == outside
        weights["tensors"] = {name: crc for name, crc in weights["tensors"].items() if name not in outside}
        weights["sha256"] = sha256_of(tmp_path / "model.safetensors")

    edit_plan(as_before)(tmp_path)
    assert torch.equal(niwaki.load(Remembering().eval(), tmp_path)(IMAGES), small(IMAGES))


def test_sparse_buffers_are_refused(model: nn.Module, small: nn.Module, tmp_path: Path) -> None:
    small.register_buffer("graph", torch.eye(3).to_sparse(), persistent=False)
    with pytest.raises(FileFormatError, match="Cannot save 'graph': it is sparse"):
        niwaki.save(small, tmp_path / "out")


def test_a_place_that_cannot_be_written_to_is_told(small: nn.Module) -> None:
    with pytest.raises(FileFormatError, match="Cannot save to '/proc/foo': .* Name a directory that can be written to"):
        niwaki.save(small, "/proc/foo")


def edit_plan(change: Callable[[dict[str, object]], None], checksum: bool = True) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        data = json.loads((directory / "plan.json").read_text())
        change(data)
        if checksum:
            data["checksum"] = file_format.checksum(data)
        (directory / "plan.json").write_text(json.dumps(data))

    return damage


def flip(name: str, position: int) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[position] ^= 1
        (directory / name).write_bytes(content)

    return damage


def rewrite(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return damage


def rename_structure(data: dict[str, object]) -> None:
    data["strusture"] = data.pop("structure")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped value": (flip("model.safetensors", -1), "model.safetensors.* is damaged: the values of '.*' contradict"),
    "flipped header": (flip("model.safetensors", 3), "model.safetensors.* is damaged: safetensors cannot read it"),
    "truncated": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-10]),  # type: ignore[func-returns-value]
        "is damaged: safetensors cannot read it",
    ),
    "missing key": (rewrite(lambda t: t.pop("norm.bias")), "lacks the tensor 'norm.bias'"),
    "foreign key": (rewrite(lambda t: t.update(odd=torch.zeros(1))), "has a tensor 'odd' that its plan.json does not"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has a plan.json but no model.safetensors"),
    "no plan": (lambda d: (d / "plan.json").unlink(), "has no plan.json: it is not a network that niwaki.save wrote"),
    "flipped plan": (flip("plan.json", 200), "plan.json"),
    "plan not text": (lambda d: (d / "plan.json").write_bytes(b"\xff\xfe"), "plan.json.* is damaged"),  # type: ignore[func-returns-value]
    "plan edited": (
        edit_plan(lambda data: data.update(provenance={"by": "hand"}), checksum=False),
        "content contradicts its checksum",
    ),
    "newer version": (
        edit_plan(lambda data: data.update(format=99)),
        "has format 99, and this niwaki reads formats up to 3",
    ),
    "flipped key": (edit_plan(rename_structure), "not a niwaki plan: KeyError: 'structure'"),
    "plan alone": (edit_plan(lambda data: data.pop("weights") and None), "holds a plan only"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, small: nn.Module, tmp_path: Path) -> None:
    niwaki.save(small, tmp_path)
    spoil, message = DAMAGES[damage]
    spoil(tmp_path)
    with pytest.raises(FileFormatError, match=message):
        niwaki.load(Net(), tmp_path)


def test_a_plan_edited_by_hand_is_refused(model: nn.Module) -> None:
    plan = plan_for(model, IMAGES)
    name = "conv1.weight"
    edits: tuple[tuple[Edit, str], ...] = (
        (Keep(name, 0, (0, 99)), "keeps positions in dimension 0 of 'conv1.weight' that are not an ascending"),
        (Keep(name, 0, (-1, 2)), "keeps positions in dimension 0"),
        (Keep(name, 7, (0,)), "cuts dimension 7 of 'conv1.weight', whose shape is"),
        (Keep("conv9.weight", 0, (0,)), "cuts a tensor 'conv9.weight', which the network it is for does not"),
        (Rescale("conv9.weight", 2.0, 0.0), "rescales a tensor 'conv9.weight', which the network it is for does not"),
        (SetAttribute("conv1", "stride", (5,), 1), r"sets 'stride\[5\]' of the module 'conv1', which has"),
        (SetScalar("conv1", "eps", 1.0, False), "rescales 'eps' of the module 'conv1', which has no such number"),
    )
    for edit, message in edits:
        with pytest.raises(PlanError, match=message):
            others = (other for other in plan.edits if other.place != edit.place)
            niwaki.cut(model, dataclasses.replace(plan, edits=(*others, edit)))
    with pytest.raises(PlanError, match="cuts a tensor 'conv9.weight'"):  # that of a graph, it seems
        niwaki.cut(model, dataclasses.replace(plan, edits=(Keep("conv9.weight", 0, (0,)),)))
    twice = plan.with_edits([Keep(name, 0, plan.tensors[name][0])])
    with pytest.raises(PlanError, match="says twice what becomes of one thing: keep, conv1.weight dim 0 keeps"):
        niwaki.cut(model, twice)
    group = next(iter(plan.kept))
    with pytest.raises(PlanError, match="keeps units of the group .* that are not an ascending choice"):
        niwaki.cut(model, dataclasses.replace(plan, kept={**plan.kept, group: (0, 99)}))
    with pytest.raises(PlanError, match="keeps units of the group"):
        niwaki.search_space(model, IMAGES).cost(dataclasses.replace(plan, kept={**plan.kept, group: (0, 99)}))


def test_any_flipped_byte_is_noticed(small: nn.Module, tmp_path: Path) -> None:
    niwaki.save(small, tmp_path)
    for name in ("model.safetensors", "plan.json"):
        intact = (tmp_path / name).read_bytes()
        for position in range(0, len(intact), max(1, len(intact) // 60)):
            content = bytearray(intact)
            content[position] ^= 4
            (tmp_path / name).write_bytes(content)
            try:
                niwaki.load(Net(), tmp_path)
            except FileFormatError:
                continue
            # JSON has bytes that carry nothing: white space between its tokens.
            assert name == "plan.json" and chr(intact[position]).isspace(), (name, position)
        (tmp_path / name).write_bytes(intact)


def test_missing_directory_and_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="There is no directory"):
        niwaki.load(Net(), tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="it is a file. Name the directory"):
        niwaki.load(Net(), tmp_path / "file")


def test_another_architecture_is_named(small: nn.Module, tmp_path: Path) -> None:
    niwaki.save(small, tmp_path)
    with pytest.raises(FileFormatError, match=r"'conv1\.bias' to have the shape \[8\], but here it has \[9\]"):
        niwaki.load(Net(9), tmp_path)
    with pytest.raises(FileFormatError, match="expects a tensor 'conv1.bias'.*this model does not have"):
        niwaki.load(Tied(), tmp_path)


def test_ties_must_agree(tmp_path: Path) -> None:
    tied, free = Tied().eval(), Tied(tie=False).eval()
    niwaki.save(niwaki.cut(tied, plan_for(tied, TOKENS, 0.8)), tmp_path / "tied")
    niwaki.save(niwaki.cut(free, plan_for(free, TOKENS, 0.8)), tmp_path / "free")
    with pytest.raises(FileFormatError, match=r"out\.weight"):
        niwaki.load(Tied(tie=False), tmp_path / "tied")
    with pytest.raises(FileFormatError, match=r"out\.weight"):
        niwaki.load(Tied(), tmp_path / "free")


class Killed(BaseException):
    """Stands for a kill: nothing after it runs, not even clean-up."""


@pytest.mark.parametrize("exists", [False, True])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(
    exists: bool, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation that changes the disk is killed in turn, in a child process as a kill is."""
    old = niwaki.cut(model, plan_for(model, IMAGES, 0.7))
    new = niwaki.cut(model, plan_for(model, IMAGES, 0.4))
    seen = set()
    for moment in range(40):
        target = tmp_path / f"run{moment}" / "out"
        if exists:
            niwaki.save(old, target)
        child = os.fork()
        if child == 0:
            die_at(moment)
            try:
                niwaki.save(new, target)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        died = os.waitstatus_to_exitcode(status) != 0
        try:
            found = niwaki.load(Net().eval(), target)(IMAGES)
        except FileFormatError:
            assert not exists
            assert not target.exists(), "a directory that did not exist must not be left half written"
            seen.add("nothing")
        else:
            outcome = [name for name, net in (("old", old), ("new", new)) if torch.equal(net(IMAGES), found)]
            assert outcome
            seen.add(outcome[0])
        if not died:
            assert outcome == ["new"]
            break
        niwaki.save(new, target)  # what a kill left behind is in nobody's way, and is swept up
        assert sorted(entry.name for entry in target.iterdir()) == ["model.safetensors", "plan.json"]
        assert list(target.parent.iterdir()) == [target]
    else:
        raise AssertionError("the save was never allowed to finish")
    assert seen == ({"old", "new"} if exists else {"nothing", "new"})
