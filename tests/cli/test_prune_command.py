"""`niwaki prune`: what was lost, what is saved, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import niwaki
from niwaki.cli.app import main
from niwaki.networks import ImageTask, build_model
from niwaki.train.batches import Batches
from niwaki.train.data import load_images
from niwaki.train.job import train
from niwaki.train.loop import Silent
from niwaki.train.pruning import prune_trained
from niwaki.train.recipe import Recipe

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a small network of the digits, as a file."""
    torch.manual_seed(0)
    model = build_model("mlp", ImageTask(10, 1, (8, 8)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batches = Batches(load_images("digits", 0), 64, 0, 0, torch.device("cpu"))
    for x, y in (batch for epoch in range(4) for batch in batches.epoch(epoch)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "mlp.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs the command in this process, in an empty directory: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setitem(prune_trained.__kwdefaults__, "measure_seconds", 0.05)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["niwaki", "prune", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return command


def test_it_says_what_was_lost_and_the_result_loads_and_can_be_pruned_again(run, weights: Path, tmp_path: Path) -> None:
    code, out, err = run("mlp", "--weights", str(weights), "--keep-params", "0.5", "--rounds", "2", "--out", "one")
    assert code == 0, err
    for text in ("mlp on digits", "repaired", "test accuracy", "parameters", "latency, batch 128", "in 2 rounds"):
        assert text in out, out
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report["small"]["params"] <= 0.5 * report["dense"]["params"] and report["check"]["holds"]
    assert report["recipe"]["repair"] == "compensate"
    before, after = report["repair"]["accuracy_before"], report["small"]["accuracy"]
    assert before <= after <= report["dense"]["accuracy"] + 0.02 and after > 0.9
    assert f"{after:.2%}" in out and f"{before:.2%}" in out and report["repair"]["layers"] == 2
    dense = build_model("mlp", ImageTask(10, 1, (8, 8))).eval()
    small = niwaki.load(dense, tmp_path / "one")
    batches = Batches(load_images("digits", 0), 64, 0, 0, torch.device("cpu"))
    with torch.no_grad():
        right = sum(int((small(x).argmax(1) == y).sum()) for x, y in batches.test())
    assert right / len(batches.images.test_y) == after

    code, out, err = run(
        *("mlp", "--weights", "one", "--keep-macs", "0.8", "--method", "magnitude", "--repair", "none"),
        *("--images", "100", "--batch-size", "50", "--out", "two"),
    )
    assert code == 0, err
    again = json.loads((tmp_path / "two" / "report.json").read_text())
    assert again["dense"]["params"] == report["small"]["params"] and again["repair"]["layers"] == 0
    assert "repaired" not in out and "Units chosen by magnitude in 4 rounds" in out
    assert sum(p.numel() for p in niwaki.load(dense, tmp_path / "two").parameters()) == again["small"]["params"]


def test_a_method_has_its_own_repair(run, weights: Path, tmp_path: Path) -> None:
    few = ("--images", "32", "--batch-size", "32")
    code, out, err = run("mlp", "--weights", str(weights), "--method", "hap", *few, "--out", "one")
    assert code == 0, err
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report["recipe"]["repair"] == "norms" and report["check"]["holds"] and "chosen by hap" in out


def test_no_image_of_the_training_is_tested_on(run, tmp_path: Path) -> None:
    recipe = Recipe(model="mlp", epochs=2, batch_size=128, method="none", seed=3, image_size="10")
    before = train(recipe, tmp_path / "dense", Silent(), measure_seconds=0.0)
    short = ("--method", "magnitude", "--rounds", "1", "--repair", "none")
    for seed in ((), ("--seed", "5")):
        code, _, err = run("mlp", "--weights", "dense", *short, *seed, "--out", "small", "--overwrite")
        assert code == 0, err
        report = json.loads((tmp_path / "small" / "report.json").read_text())
        assert report["dense"]["accuracy"] == before.small.accuracy and report["data"]["shape"] == [1, 10, 10]
        assert report["data"]["split"] == 3 and report["recipe"]["seed"] == (5 if seed else 3)
        assert report["data"]["test_checksum"] == before.data["test_checksum"]
    code, _, err = run("mlp", "--weights", "small", *short, "--out", "smaller")  # the split is handed on
    assert code == 0 and json.loads((tmp_path / "smaller" / "report.json").read_text())["data"]["split"] == 3, err
    images = load_images("digits", 3)
    pixels = torch.cat([images.test_x, images.train_x])[:, 0].numpy()
    np.savez(tmp_path / "other.npz", images=pixels, labels=torch.cat([images.test_y, images.train_y]).numpy())
    code, _, err = run("mlp", "--weights", "dense/model.safetensors", *short, "--data", "other.npz", "--out", "no")
    assert code == 1 and "The weights were trained on the images of 'digits', and those of 'other.npz' have" in err
    assert not (tmp_path / "no").exists()


def test_a_factory_may_bring_its_weights(run, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from safetensors.torch import load_file\n"
        "from niwaki.networks import ImageTask, build_model\n"
        "def trained():\n"
        "    model = build_model('mlp', ImageTask(10, 1, (8, 8)))\n"
        f"    model.load_state_dict(load_file({str(weights)!r}))\n"
        "    return model\n"
    )
    code, _, err = run(
        "net.py:trained",
        "--rounds",
        "1",
        "--repair-images",
        "150",
        "--images",
        "100",
        "--batch-size",
        "50",
        "--refine",
        "1",
    )
    assert code == 0, err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dense"]["accuracy"] > 0.9 and report["small"]["macs"] <= 0.5 * report["dense"]["macs"]
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["provenance"]["refined"] == "compensate"
    code, _, err = run("net.py:trained")
    assert code == 1 and "already holds a run (report.json). Replace it with --overwrite" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mlp",), "The network 'mlp' has random weights, and there is nothing to keep of these. Give those of its"),
        (("mlp", "--weights", "nowhere"), "There are no weights at 'nowhere'. Give a file, or a directory"),
        (("mlp", "--weights", "text.bin"), "The weights 'text.bin' are of no known kind. Give a .safetensors, .pt,"),
        (("mlp", "--weights", "text.safetensors"), "The weights 'text.safetensors' cannot be read: "),
        (("mlp", "--weights", "text.pt"), "The weights 'text.pt' cannot be read: "),
        (("mlp", "--weights", "list.pt"), "'list.pt' holds no state dictionary, tensors by name. Save the network's"),
        (("mlp", "--weights", "whole.pt"), "'whole.pt' holds Python objects, such as a whole model, and these run"),
        (("mlp", "--weights", ""), "--weights is empty. Name a file of a state dictionary, or a directory"),
        (("mlp", "--weights", "MLP", "--refine", "1", "--images", "100"), "Give more --images, or a smaller --batch"),
        (("mlp", "--weights", "."), "plan.json"),
        (("resnet", "--weights", "MLP"), "are of another network: "),
        (("mlp", "--weights", "MLP", "--keep-macs", "0"), "macs=0.0 is not a budget"),
        (("mlp", "--weights", "MLP", "--method", "magic"), "'magic'"),
        (("mlp", "--weights", "MLP", "--repair", "magic"), "There is no repair 'magic'. Choose compensate, norms or"),
        (("mlp", "--weights", "MLP", "--rounds", "0"), "rounds=0 must be a whole number"),
        (("mlp", "--weights", "MLP", "--rounds", "2", "--refine", "1"), "refine= starts from a choice in one round"),
        (("mlp", "--weights", "MLP", "--images", "0"), "images is 0, but must be at least 1"),
        (("mlp", "--weights", "MLP", "--seed", "-1"), "seed is -1, but must be a whole number from 0 to 4294967295"),
        (("mlp", "--weights", "MLP", "--data", "nowhere.npz"), "There is no data at 'nowhere.npz'"),
        (("mlp", "--weights", "MLP", "--device", "warp"), "The device 'warp' cannot be used here"),
        (("mlp", "--weights", "MLP", "--out", ""), "--out is empty. Name a directory"),
        (("mlp", "--weights", "MLP", "--out", "list.pt"), "The output 'list.pt' is a file"),
    ],
)
def test_bad_input_is_one_sentence(
    run, weights: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    for name in ("text.bin", "text.pt", "text.safetensors"):
        (tmp_path / name).write_text("text")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    before = sorted(entry.name for entry in tmp_path.iterdir())
    code, _, err = run(*(str(weights) if argument == "MLP" else argument for argument in arguments))
    assert code == 1 and err.startswith("niwaki: ") and message in err, err
    assert err.count("\n") == 1 and sorted(entry.name for entry in tmp_path.iterdir()) == before, err
