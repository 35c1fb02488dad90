"""What goes through files besides a plain network: old formats, other devices, optimizers, programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import IMAGES, TOKENS, Everything, Net, Tied, assert_same, plan_for
from torch import Tensor, nn
from torch.export import Dim, export
from torch.optim import Optimizer

import niwaki
from niwaki.errors import FileFormatError
from niwaki.io import format as file_format
from niwaki.io.program import check_program
from niwaki.io.tree import decode, encode

STORED = sorted((Path(__file__).parents[1] / "files").glob("*/*"))
NETWORKS: dict[str, tuple[type[nn.Module], Tensor]] = {
    "cnn": (Net, IMAGES),
    "tied": (Tied, TOKENS),
    "everything": (Everything, TOKENS),
}


def small_net(kind: type[nn.Module] = Net) -> nn.Module:
    model = kind().eval()
    inputs, share = (TOKENS, 0.8) if issubclass(kind, Tied) else (IMAGES, 0.5)
    return niwaki.cut(model, plan_for(model, inputs, share))


@pytest.mark.parametrize("directory", STORED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_files_of_earlier_versions_load(directory: Path) -> None:
    """Written by niwaki as it was then; they are never written anew."""
    kind, inputs = NETWORKS[directory.name]
    loaded = niwaki.load(kind().eval(), directory)
    expected = load_file(directory / "expected.safetensors")["output"]
    far = (loaded(inputs) - expected).abs().max() / expected.abs().max()
    assert far < 1e-5  # another processor adds up in another order


def test_there_are_files_of_all_earlier_versions() -> None:
    names = {f"{path.parent.name}-{path.name}" for path in STORED}
    assert names == {"plan-1-cnn", "plan-1-tied", "plan-2-cnn", "plan-2-tied", "plan-2-everything"}


def test_a_newer_directory_is_refused(tmp_path: Path) -> None:
    niwaki.save(small_net(), tmp_path)
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["directory"] == 1
    for version in (2, "1", None):
        data["directory"] = version
        data["checksum"] = file_format.checksum(data)
        (tmp_path / "plan.json").write_text(json.dumps(data))
        with pytest.raises(FileFormatError, match=f"directory format {version!r}, and this niwaki reads formats up to"):
            niwaki.load(Net(), tmp_path)


def test_a_plan_says_where_it_comes_from(tmp_path: Path) -> None:
    torch.manual_seed(1234)
    niwaki.save(small_net(), tmp_path)
    about = json.loads((tmp_path / "plan.json").read_text())["provenance"]
    assert about["seed"] == 1234 and about["criterion"] == "magnitude" and about["budget"]["params"] == 0.5
    assert about["kept"]["params"] < about["dense"]["params"]
    assert {"niwaki", "torch", "numpy", "python"} <= about.keys()


@pytest.mark.parametrize("kind", [Net, Tied])
def test_a_network_on_the_meta_device_is_filled(kind: type[nn.Module], tmp_path: Path) -> None:
    small, inputs = small_net(kind), IMAGES if kind is Net else TOKENS
    small.requires_grad_(False)
    niwaki.save(small, tmp_path)
    with torch.device("meta"):
        fresh = kind().eval()
    for device in (None, "cpu"):
        loaded = niwaki.load(fresh, tmp_path, device=device)
        assert torch.equal(loaded(inputs), small(inputs))
        assert all(parameter.is_meta for parameter in fresh.parameters())
        assert all(parameter.requires_grad for parameter in loaded.parameters())
        niwaki.save(loaded, tmp_path / "again")  # it knows its plan
        assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    if kind is Tied:
        assert loaded.out.weight is loaded.embed.weight


class Recurrent(nn.Module):
    """Keeps references to its parameters in a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.lstm(x)[0])
        return y


def test_references_to_parameters_on_the_meta_device_follow(tmp_path: Path) -> None:
    x, model = torch.randn(2, 5, 4), Recurrent().eval()
    small = niwaki.cut(model, plan_for(model, x, 0.7))
    niwaki.save(small, tmp_path)
    with torch.device("meta"):
        fresh = Recurrent().eval()
    assert torch.equal(niwaki.load(fresh, tmp_path)(x), small(x))


class Odd(Net):
    """Holds a tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def test_a_tensor_that_would_stay_on_the_meta_device_is_told(tmp_path: Path) -> None:
    niwaki.save(small_net(Odd), tmp_path)
    with torch.device("meta"):
        fresh = Odd()
    with pytest.raises(FileFormatError, match="'scale' of the model to load into is on the meta device"):
        niwaki.load(fresh, tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_network_goes_to_another_device(tmp_path: Path) -> None:
    small = small_net(Tied)
    niwaki.save(small.to("cuda"), tmp_path)
    for fresh in (Tied().eval(), Tied().eval().to("cuda")):
        for device in ("cpu", "cuda"):
            loaded = niwaki.load(fresh, tmp_path, device=device)
            assert loaded.embed.weight.device.type == device and loaded.out.weight is loaded.embed.weight


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    weights = [p for p in model.parameters() if p.ndim > 1]
    return [{"params": weights, "weight_decay": 0.1}, {"params": [p for p in model.parameters() if p.ndim <= 1]}]


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(_groups(m), lr=0.1, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(_groups(m), lr=torch.tensor(0.01), amsgrad=True),
    "adam fused": lambda m: torch.optim.Adam(m.parameters(), fused=True),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), centered=True, momentum=0.5),
    "adafactor": lambda m: torch.optim.Adafactor(m.parameters()),
    "radam": lambda m: torch.optim.RAdam(_groups(m), foreach=True),
    "asgd": lambda m: torch.optim.ASGD(m.parameters()),
    "rprop": lambda m: torch.optim.Rprop(m.parameters()),
}


def train(model: nn.Module, optimizer: Optimizer, inputs: Tensor, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).float().square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_come_back_to_the_bit(name: str, tmp_path: Path) -> None:
    small = small_net(Tied)
    optimizer = OPTIMIZERS[name](small)
    train(small, optimizer, TOKENS)
    optimizer.param_groups[0]["lr"] = 0.003
    before = json.dumps(encode(optimizer.state_dict(), "x", {}))
    niwaki.save(small, tmp_path, optimizer=optimizer)
    assert json.dumps(encode(optimizer.state_dict(), "x", {})) == before
    loaded = niwaki.load(Tied().eval(), tmp_path)
    fresh = OPTIMIZERS[name](loaded)
    niwaki.load_optimizer(fresh, loaded, tmp_path)
    assert_same(fresh.state_dict(), optimizer.state_dict())
    train(small, optimizer, TOKENS)
    train(loaded, fresh, TOKENS)
    for mine, theirs in zip(loaded.parameters(), small.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_state_keeps_its_own_dtype(tmp_path: Path) -> None:
    """Torch would cast the moments of half-precision parameters when it loads them."""
    small = small_net(Tied).to(torch.bfloat16)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    train(small, optimizer, TOKENS)
    for state in optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].float() + 1e-5
    niwaki.save(small, tmp_path, optimizer=optimizer)
    loaded = niwaki.load(Tied(), tmp_path)
    fresh = torch.optim.SGD(loaded.parameters(), lr=0.1, momentum=0.9)
    niwaki.load_optimizer(fresh, loaded, tmp_path)
    assert_same(fresh.state_dict(), optimizer.state_dict())


def test_a_method_travels_with_its_optimizer(tmp_path: Path) -> None:
    """The state of whatever hangs on an optimizer is in its state_dict, and so in the file."""

    def attached(model: nn.Module) -> tuple[Optimizer, niwaki.HESSO]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        space = niwaki.search_space(model, IMAGES)
        return optimizer, niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.6), niwaki.Schedule(start=1, until=12))

    small = small_net()
    optimizer, method = attached(small)
    train(small, optimizer, IMAGES, 5)
    niwaki.save(small, tmp_path, optimizer=optimizer)
    loaded = niwaki.load(Net().eval(), tmp_path)
    fresh, again = attached(loaded)
    niwaki.load_optimizer(fresh, loaded, tmp_path)
    assert again.step == method.step == 5
    assert_same(fresh.state_dict(), optimizer.state_dict())


def test_wrong_optimizers_are_told_and_stay_as_they_were(tmp_path: Path) -> None:
    small = small_net()
    niwaki.save(small, tmp_path)
    with pytest.raises(FileFormatError, match="holds no optimizer. Save it with"):
        niwaki.load_optimizer(torch.optim.SGD(small.parameters()), small, tmp_path)
    optimizer = torch.optim.SGD(small.parameters(), momentum=0.9)
    train(small, optimizer, IMAGES)
    niwaki.save(small, tmp_path, optimizer=optimizer)
    cases: Iterable[tuple[Optimizer, nn.Module, str]] = (
        (torch.optim.Adam(small.parameters()), small, "holds the state of torch.optim.sgd.SGD, not of .*Adam"),
        (torch.optim.SGD(small.head.parameters()), small, "'conv1.bias' with shape .* trains it with shape none"),
        (torch.optim.SGD(Net().parameters()), small, "trains a parameter of shape .* that this network does not have"),
        (torch.optim.SGD(_groups(small)), small, r"has its parameters in other groups: \[8\] parameters .* \[3, 5\]"),
    )
    for wrong, model, message in cases:
        train(small, wrong, IMAGES) if model is small and wrong.param_groups[0]["params"][0].ndim else None
        before = encode(wrong.state_dict(), "x", tensors := {})
        with pytest.raises(FileFormatError, match=message):
            niwaki.load_optimizer(wrong, model, tmp_path)
        assert encode(wrong.state_dict(), "x", now := {}) == before
        assert all(torch.equal(now[name], value) for name, value in tensors.items())
    dense = Net()
    with pytest.raises(FileFormatError, match=r"holds the state of 'conv1.bias' with shape .* with shape \[8\]"):
        niwaki.load_optimizer(torch.optim.SGD(dense.parameters()), dense, tmp_path)
    with pytest.raises(FileFormatError, match="trains a parameter of shape"):
        niwaki.save(small, tmp_path / "out", optimizer=torch.optim.SGD(dense.parameters()))
    optimizer.state[small.head.weight]["odd"] = object()
    with pytest.raises(FileFormatError, match=r"Cannot save 'optimizer.state.head.weight.odd': it is a object"):
        niwaki.save(small, tmp_path / "out", optimizer=optimizer)
    assert not (tmp_path / "out").exists()
    (tmp_path / "program.json").write_text("mine")
    niwaki.save(small, tmp_path)  # without: the old one must not stay beside the new network
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.safetensors", "plan.json", "program.json"]
    assert (tmp_path / "program.json").read_text() == "mine"


def test_names_with_dots_do_not_collide() -> None:
    value = {"a.b": {"c": torch.zeros(1)}, "a": {"b.c": torch.ones(1), "": [torch.ones(2)]}, 3: (None, float("-inf"))}
    tensors: dict[str, Tensor] = {}
    tree = json.loads(json.dumps(encode(value, "x", tensors), allow_nan=False))
    assert len(tensors) == 3
    assert_same(decode(tree, tensors), value)


SCRIPT = """
import sys, torch, niwaki
from safetensors.torch import load_file, save_file
folder = sys.argv[1]
run = niwaki.load_program(folder).module()
save_file({"output": run(load_file(folder + "/in.safetensors")["x"])}, folder + "/out.safetensors")
"""


class WithConstants(Tied):
    """A buffer outside the state, a plain tensor, and no gradients for a while: all of it is in the program."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((16,), 2.0), persistent=False)
        self.shift = torch.arange(3.0)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.down(torch.relu(self.up(x)) * self.scale)
        with torch.no_grad():
            mean = x[:, 1 : x.shape[1]].mean(1, keepdim=True)
        return self.out(x) + mean.sum() * self.shift.sum()


def test_a_program_runs_without_the_code_of_the_model(tmp_path: Path) -> None:
    small = small_net(WithConstants)
    sizes = {"tokens": {0: Dim("batch", max=8), 1: Dim("length", min=4, max=16)}}
    program = export(small, (TOKENS,), dynamic_shapes=sizes)
    niwaki.save(small, tmp_path, program=program)
    text = (tmp_path / "program.json").read_text()
    assert "stack_trace" not in text and str(Path(__file__).parent) not in text
    own = load_file(tmp_path / "program.safetensors")
    assert set(own) == {"shift"}
    loaded = niwaki.load_program(tmp_path)
    for shape in ((2, 5), (3, 9)):
        tokens = torch.randint(0, 11, shape)
        assert torch.equal(loaded.module()(tokens), small(tokens))
    assert loaded.state_dict["embed.weight"] is loaded.state_dict["out.weight"]
    with pytest.raises((AssertionError, RuntimeError)):
        loaded.module()(torch.zeros(2, 20, dtype=torch.int64))
    save_file({"x": tokens}, tmp_path / "in.safetensors")
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True)
    assert torch.equal(load_file(tmp_path / "out.safetensors")["output"], small(tokens))
    assert torch.equal(niwaki.load(WithConstants().eval(), tmp_path)(tokens), small(tokens))


def test_wrong_programs_are_told(tmp_path: Path) -> None:
    small = small_net()
    niwaki.save(small, tmp_path)
    with pytest.raises(FileFormatError, match="holds no program. Save it with"):
        niwaki.load_program(tmp_path)
    with pytest.raises(FileFormatError, match="The program is of another network: its parameter"):
        niwaki.save(small, tmp_path / "out", program=export(Net().eval(), (IMAGES,)))
    assert not (tmp_path / "out").exists()
    niwaki.save(small, tmp_path, program=export(small, (IMAGES,)))
    content = json.loads((tmp_path / "program.json").read_text())
    evil = json.loads(json.dumps(content))
    evil["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"
    for target in ("torch.ops.aten.__class__", "torch.ops.load_library", "os.system", "_operator.attrgetter"):
        with pytest.raises(ValueError, match="which is not an operator"):
            check_program({"target": target})
    check_program({"nodes": [{"target": "torch.ops.aten.__and__.Tensor"}, {"target": "_operator.getitem"}]})
    for change, message in (
        (lambda d: d.update(guards_code=["print(1)"]), "it holds Python code"),
        (lambda d: d.update(evil), "it calls 'torch.hub.load', which is not an operator"),
        (lambda d: d["graph_module"].update(x={"expr_str": "().__class__"}), "is not a size"),
        (lambda d: d.pop("graph_module"), "KeyError|TypeError|AttributeError"),
    ):
        text = json.loads(json.dumps(content))
        change(text)  # type: ignore[no-untyped-call]
        (tmp_path / "program.json").write_text(json.dumps(text))
        data = json.loads((tmp_path / "plan.json").read_text())
        with pytest.raises(FileFormatError, match="program.json.* is damaged: it contradicts its checksum"):
            niwaki.load_program(tmp_path)
        from niwaki.io.atomic import sha256_of

        data["program"]["sha256"] = sha256_of(tmp_path / "program.json")
        data["checksum"] = file_format.checksum(data)
        (tmp_path / "plan.json").write_text(json.dumps(data))
        with pytest.raises(FileFormatError, match=f"program.json.* cannot be read as a program by torch.*({message})"):
            niwaki.load_program(tmp_path)


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("Mul(Integer(16), Symbol('s39', positive=True, integer=True))", True),
        ("Symbol('u0', integer=True)", True),
        ("FloorDiv(Add(Symbol('s0'), Integer(-1)), Integer(2))", True),
        ("2*s0 + 1", False),
        ("__import__('os').system('x')", False),
        ("Symbol('s0').args", False),
        ("Integer(1) if Integer(0) else Integer(2)", False),
        ("Symbol('import os')", False),
        ("[Integer(1)]", False),
        ("lambda: 1", False),
        ("open('s0')", False),
    ],
)
def test_only_sizes_are_evaluated(text: str, fine: bool) -> None:
    content = {"x": [{"expr_str": text}]}
    if fine:
        check_program(content)
    else:
        with pytest.raises(ValueError, match="is not a size"):
            check_program(content)
