"""Programs and ONNX files compute what the cut network computes, for other sizes too, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saved import IMAGES, Net, plan_for
from torch import Tensor, nn

import niwaki
from niwaki.errors import ExportError
from niwaki.io import export as exporting

onnxruntime = pytest.importorskip("onnxruntime")


class Decoder(nn.Module):
    """A tiny transformer with a mask, a cache of positions, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed = nn.Embedding(23, 16)
        self.norm = nn.RMSNorm(16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.register_buffer("places", torch.randn(64, 16), persistent=False)

    def forward(self, tokens: Tensor, mask: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        x = self.embed(tokens) + self.places[: tokens.shape[1]]
        y = self.norm(x)
        shape = (*tokens.shape, self.heads, -1)
        q, k, v = (part(y).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        allowed = mask[:, None, None, :] & torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = x + self.out(y.transpose(1, 2).reshape(*tokens.shape, -1))
        x = x + self.down(torch.relu(self.up(self.norm(x)))) * scale
        return {"logits": x @ self.embed.weight.T, "pooled": (x * mask[..., None]).mean(1)}


def tokens(rows: int, length: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rows)
    mask = torch.rand(rows, length, generator=generator) > 0.3
    mask[:, 0] = True
    return {"tokens": torch.randint(0, 23, (rows, length), generator=generator), "mask": mask}


def small_of(model: nn.Module, inputs: Any) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return niwaki.cut(model.eval(), plan_for(model, inputs, 0.6))


def run(path: Path, **feed: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == list(feed)
    return [torch.from_numpy(value) for value in session.run(None, {k: v.numpy() for k, v in feed.items()})]


def test_a_cut_cnn_in_both_formats(tmp_path: Path) -> None:
    small = small_of(Net(), IMAGES).train()
    buffers = {name: value.clone() for name, value in small.named_buffers()}
    program = niwaki.export(small, IMAGES, tmp_path / "sub" / "net.onnx", dynamic={"x": (0, 2)})
    assert small.training and all(torch.equal(value, buffers[name]) for name, value in small.named_buffers())
    assert [entry.name for entry in (tmp_path / "sub").iterdir()] == ["net.onnx"]
    small.eval()
    for shape in ((2, 3, 8, 8), (5, 3, 6, 8), (1, 3, 20, 8)):
        x = torch.randn(shape)
        expected = small(x)
        for found in (program.module()(x), run(tmp_path / "sub" / "net.onnx", x=x)[0]):
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    niwaki.save(small, tmp_path / "saved", program=program)
    assert torch.equal(niwaki.load_program(tmp_path / "saved").module()(x), program.module()(x))


def test_a_cut_transformer_in_both_formats(tmp_path: Path) -> None:
    small = small_of(Decoder(), tokens(2, 6))
    assert small.query.out_features < 16 or small.up.out_features < 32
    free = {"tokens": (0, 1), "mask": (0, 1)}
    program = niwaki.export(small, {**tokens(2, 6), "scale": 0.5}, tmp_path / "net.onnx", dynamic=free)
    for rows, length in ((2, 6), (3, 11), (7, 2)):
        given = tokens(rows, length)
        expected = small(**given, scale=0.5)
        for found in (list(program.module()(**given, scale=0.5).values()), run(tmp_path / "net.onnx", **given)):
            for mine, theirs in zip(found, expected.values(), strict=True):
                assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.one(x), {"two": self.two(x)}


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lin(x.view(4, 3))
        return y


class Choosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lin(x)
        return y if bool(y.sum() > 0) else -y


class Cache:
    def __init__(self, held: Tensor) -> None:
        self.held = held


class Caching(Fixed):
    def forward(self, x: Tensor) -> Any:
        y = self.lin(x)
        return y, Cache(y)


def test_what_cannot_be_exported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = tmp_path / "net.onnx", torch.randn(4, 3)
    for model, inputs, options, message in (
        (Choosing(), x, {}, "The network cannot be exported. torch.export cannot export the model: .*test_export.py:"),
        (Caching(), x, {}, "returns Cache beside its tensors, and .*use_cache = False.$"),
        (Fixed(), x, {"dynamic": {"x": (0,)}}, "cannot be exported|does not run on inputs of twice the size"),
        (Net(), IMAGES[:1], {"dynamic": {"x": (0,)}}, r"Dimension 0 of 'x' of shape \[1, 3, 8, 8\] cannot be dynamic"),
        (Net(), IMAGES, {"dynamic": {"y": (0,)}}, r"dynamic names 'y', which is not a tensor among the .* \(x\)"),
        (Net(), [IMAGES, IMAGES], {}, "exported from one call, and example_inputs has 2"),
    ):
        with pytest.raises(ExportError, match=message):
            niwaki.export(model, inputs, path, **options)
    with pytest.raises(ExportError, match="does not end in .onnx"):
        niwaki.export(Net(), IMAGES, tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


def test_a_difference_is_an_error_that_names_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = tmp_path / "net.onnx", torch.randn(4, 3)
    faithful = exporting.exported

    def other(*args: Any) -> Any:
        program = faithful(*args)
        program.state_dict["two.bias"] = nn.Parameter(torch.ones(2))
        return program

    monkeypatch.setattr(exporting, "exported", other)
    with pytest.raises(ExportError, match=r"The exported program computes another .\[1\]\['two'\].*1e-04 is allowed"):
        niwaki.export(Pair(), x, path)
    monkeypatch.setattr(exporting, "exported", faithful)
    real = torch.onnx.export

    def careless(program: Any, **options: Any) -> Any:
        program.state_dict["head.bias"] = nn.Parameter(program.state_dict["head.bias"] + 0.01)
        return real(program, **options)

    monkeypatch.setattr(torch.onnx, "export", careless)
    path.write_text("old")
    with pytest.raises(
        ExportError, match="The ONNX file computes another 'output' for inputs of the sizes .*differs by"
    ):
        niwaki.export(Net().eval(), IMAGES, path)
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]
    monkeypatch.setattr(torch.onnx, "export", real)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ExportError, match="needs the package onnxscript: pip install onnx onnxruntime onnxscript"):
        niwaki.export(Net().eval(), IMAGES, path)


class Blocks(nn.Module):
    """A stream to which two branches are added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.second = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(x + self.first(x))
        return self.head((y + self.second(y)).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("erased", ["first", "second"])
def test_networks_without_structures_in_both_formats(erased: str, tmp_path: Path) -> None:
    """A class with an `Absent` in it, and a program without the operand, for other batches and sizes too."""
    model, free = Blocks().eval(), {"x": (0, 2)}
    small = {}
    for as_graph in (False, True):
        space = niwaki.search_space(model, IMAGES, erase=True, as_graph=as_graph)
        keep = np.arange(space.num_units) % 3 > 0  # narrower, too
        for group in space.groups:
            if group.structure is not None:
                keep[group.first] = space.structures[group.structure].name != erased
        small[as_graph] = niwaki.cut(space.model, space.plan(keep))
    path = tmp_path / "class.onnx"
    program = niwaki.export(small[False], IMAGES, path, dynamic=free)
    assert not any(name.startswith(erased) for name, _ in program.named_parameters())
    for rows, side in ((2, 8), (3, 5)):
        x = torch.randn(rows, 3, side, 8)
        expected = small[False](x)
        for found in (program.module()(x), run(path, x=x)[0]):
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    x = torch.randn(2, 3, 8, 8)
    niwaki.export(small[True], x, tmp_path / "program.onnx")
    assert torch.allclose(run(tmp_path / "program.onnx", x=x)[0], small[False](x), rtol=1e-4, atol=1e-5)
