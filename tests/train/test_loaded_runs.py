"""What is read of a run later: its report, its network, and the images that this network takes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from short_runs import train

import niwaki
from niwaki.errors import DataError, FileFormatError, RunError
from niwaki.train.data import load_images
from niwaki.train.loop import Silent
from niwaki.train.recipe import Recipe


def test_reports_of_before_are_read_and_others_are_refused(tmp_path: Path) -> None:
    report = train(Recipe(model="mlp", epochs=1, method="none", width=0.1), tmp_path / "out", Silent())
    path = tmp_path / "out" / "report.json"
    data = json.loads(path.read_text())
    before = {key: value for key, value in data.items() if key not in ("map", "ratios", "baseline")} | {"format": 2}
    path.write_text(json.dumps(before))
    assert (
        niwaki.load_run(tmp_path / "out").report.to_json() == dataclasses.replace(report, map=None, ratios=()).to_json()
    )
    for text, message in (
        (json.dumps(data | {"format": 9}), "has format 9, and this niwaki reads the formats 2 to 3"),
        ("{}", "is not the report of a niwaki run: KeyError: 'format'"),
        ("[", "is not the report of a niwaki run: JSONDecodeError"),
        (
            json.dumps(data | {"recipe": data["recipe"] | {"model": "gone.py:net"}}),
            "of the network 'gone.py:net', which",
        ),
    ):
        path.write_text(text)
        with pytest.raises(FileFormatError, match=message):
            niwaki.load_run(tmp_path / "out")
    with pytest.raises(FileFormatError, match="it has no report.json. Name the directory that `niwaki train --out`"):
        niwaki.load_run(tmp_path / "nowhere")


def test_a_run_takes_images_as_its_training_did(tmp_path: Path) -> None:
    recipe = Recipe(model="mlp", epochs=2, batch_size=256, method="none", width=0.1, image_size="12x10")
    report = train(recipe, tmp_path, Silent())
    network, images = niwaki.load_run(tmp_path), load_images("digits", 0)
    right = (network(images.test_x).argmax(1) == images.test_y).double().mean()
    assert float(right) == pytest.approx(report.small.accuracy) and report.data["shape"] == [1, 12, 10]
    assert torch.equal(network(images.test_x.float()), network(images.test_x))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        near = network.to(dtype)(images.test_x[:8])
        assert near.dtype == dtype and torch.isfinite(near).all()
    zeros = torch.zeros(1, 1, 12, 10, dtype=torch.float64)
    assert niwaki.search_space(network, zeros).num_units
    assert network.to("meta")(zeros.to("meta")).shape == (1, 10)


def test_a_training_that_goes_on_keeps_its_test_images(tmp_path: Path) -> None:
    recipe = Recipe(model="mlp", epochs=1, batch_size=256, method="none", seed=3)
    first = train(recipe, tmp_path / "first", Silent())
    next_one = dataclasses.replace(recipe, seed=4, weights=str(tmp_path / "first"))
    report = train(next_one, tmp_path / "next", Silent())
    assert report.data["test_checksum"] == first.data["test_checksum"] and report.data["split"] == 3
    again = train(dataclasses.replace(recipe, seed=4), tmp_path / "again", Silent())
    assert again.data["test_checksum"] != first.data["test_checksum"] and again.data["split"] == 4


def test_images_that_a_run_was_not_trained_on_are_refused(tmp_path: Path) -> None:
    train(Recipe(model="mlp", epochs=1, batch_size=256, method="none", width=0.1), tmp_path, Silent())
    network = niwaki.load_run(tmp_path)
    for images, message in (
        (torch.rand(2, 1, 8, 8), "The largest pixel is .*, and pixels from 0 to 255 are expected. Multiply"),
        (torch.zeros(2, 1, 16, 16), "The images are 16x16 pixels, and the network was trained on 8x8. Scale them"),
        (torch.zeros(2, 3, 8, 8), "The images have 3 channels, and the network takes 1"),
        (torch.zeros(1, 8, 8), r"The images are of shape \[1, 8, 8\], but must be a tensor \[batch, 1, 8, 8\]"),
        (np.zeros((2, 1, 8, 8)), "The images are a ndarray, but must be a tensor"),
    ):
        with pytest.raises(DataError, match=message):
            network(images)
    with pytest.raises(RunError, match="The device 'warp' cannot be used here"):
        niwaki.load_run(tmp_path, device="warp")
    path = tmp_path / "report.json"
    good = json.loads(path.read_text())
    for part, change in (
        ("data", {"mean": [1.0, 2.0, 3.0]}),
        ("data", {"std": ["a"]}),
        ("data", {"shape": [1, 8]}),
        ("data", {"classes": None}),
        ("recipe", {"width": None}),
        ("recipe", {"model": 3}),
        ("recipe", {"seed": "a"}),
    ):
        path.write_text(json.dumps(good | {part: good[part] | change}))
        with pytest.raises(FileFormatError, match="is not the report of a niwaki run: ValueError: "):
            niwaki.load_run(tmp_path)
    for whole in (good | {"recipe": []}, good | {"data": None}, [], good | {"data": {"mean": [1.0]}}):
        path.write_text(json.dumps(whole))
        with pytest.raises(FileFormatError, match="is not the report of a niwaki run: "):
            niwaki.load_run(tmp_path)
