"""The networks that can be trained, where their weights come from, and what does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from short_runs import CPU, train

from niwaki.errors import RunError
from niwaki.networks import ImageTask, build_model
from niwaki.train.data import load_images
from niwaki.train.loop import Silent, TrainingRun
from niwaki.train.recipe import Recipe


def test_built_in_and_file_models(tmp_path: Path) -> None:
    task = ImageTask(5, 3, (12, 10))
    for name in ("resnet", "mlp"):
        assert build_model(name, task)(torch.zeros(2, 3, 12, 10)).shape == (2, 5)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def factory(num_classes, image_size=(1, 1)):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size[0] * image_size[1], num_classes))\n"
        "def nothing():\n    return 3\n"
        "def fails():\n    raise ValueError('no weights')\n"
    )
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    mine = tmp_path / "mine.py"
    assert build_model(f"{mine}:factory", task)(torch.zeros(2, 3, 12, 10)).shape == (2, 5)
    for name, message in {
        "resnot": "There is no model 'resnot'. Give resnet, mlp, superresnet, unets, cells, supernet, timm:NAME",
        f"{mine}:absent": "has no function 'absent'",
        f"{mine}:nothing": "returned an object of the type int, not a torch.nn.Module",
        f"{mine}:fails": "failed: ValueError: no weights",
        f"{tmp_path}/no.py:factory": "There is no file",
        f"{tmp_path}/broken.py:factory": "Importing .* failed: ModuleNotFoundError",
    }.items():
        with pytest.raises(RunError, match=message):
            build_model(name, task)


def test_zoo_models() -> None:
    task = ImageTask(5, 1, (32, 32))
    assert build_model("timm:resnet10t", task)(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    assert build_model("torchvision:resnet18", task)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(RunError, match="timm has no model 'resnet18x'. Did you mean resnet18"):
        build_model("timm:resnet18x", task)
    with pytest.raises(RunError, match="torchvision has no model 'resnet19'. Did you mean resnet1"):
        build_model("torchvision:resnet19", task)


def test_a_run_starts_from_weights_with_another_optimizer(tmp_path: Path) -> None:
    short = Recipe(model="mlp", epochs=1, batch_size=256, periods=2, width=0.1, optimizer="adamw", lr=1e-9)
    torch.manual_seed(5)
    model = build_model("mlp", ImageTask(10, 1, (8, 8)), 0.1)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    run = TrainingRun(dataclasses.replace(short, weights=str(tmp_path / "w.pt")), load_images("digits", 0), CPU)
    assert isinstance(run.optimizer, torch.optim.AdamW)
    assert all(torch.equal(*pair) for pair in zip(run.model.parameters(), model.parameters(), strict=True))
    with pytest.raises(RunError, match="There are no weights at 'nowhere.pt'"):
        TrainingRun(dataclasses.replace(short, weights="nowhere.pt"), load_images("digits", 0), CPU)


def test_models_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "from torch import nn\n"
        "def wrong_size():\n    return nn.Sequential(nn.Flatten(), nn.Linear(100, 10))\n"
        "def wrong_classes():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
        "class Pair(nn.Module):\n    def forward(self, x):\n        return x, x\n"
    )
    for item, message in {
        "wrong_size": "cannot take images of 1x8x8: mat1 and mat2",
        "wrong_classes": r"scores of shape \[2, 7\] for 2 images of 1x8x8, but the data have 10 classes",
        "Pair": "returns a tuple; it must return scores",
    }.items():
        with pytest.raises(RunError, match=message):
            train(Recipe(model=f"{tmp_path}/m.py:{item}"), tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()
