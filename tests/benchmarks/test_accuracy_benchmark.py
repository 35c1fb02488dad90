"""benchmarks/accuracy on a task of seconds: every arm, what a cut in the middle changes, and rows on disk."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import niwaki
from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import arms, protocol
from benchmarks.accuracy.airbench import Airbench, AirbenchSgd, whitening
from benchmarks.accuracy.arms import ARMS
from benchmarks.accuracy.augmentation import AlternatingFlip, BatchShift, Epoch, Flip, Shift
from benchmarks.accuracy.datasets import Dataset, digits
from benchmarks.accuracy.images import CrossEntropy, ImageTask
from benchmarks.accuracy.language import LanguageTask, Texts
from benchmarks.accuracy.networks import CifarResNet, llama
from benchmarks.accuracy.plots import plots
from benchmarks.accuracy.protocol import jobs
from benchmarks.accuracy.pruned_first import PRUNED_FIRST
from benchmarks.accuracy.recipe import Adam, Cosine, Drops, OneCycle, Recipe, Sgd
from benchmarks.accuracy.rows import Job, Row, append, missing, read
from benchmarks.accuracy.setting import Setting
from benchmarks.accuracy.summary import best_baseline, summaries
from benchmarks.accuracy.table import markdown
from benchmarks.accuracy.task import Task
from benchmarks.accuracy.tasks import TASKS
from benchmarks.accuracy.text import fresh
from benchmarks.accuracy.training import Training
from benchmarks.accuracy.where import Where
from niwaki.networks.small import ResNet
from niwaki.networks.super_resnet import SuperResNet
from niwaki.networks.torchvision_cpu import load

CPU = Where(None, torch.device("cpu"))
SMALL = partial(ResNet, 10, 1, (8, 8), (8, 16), 1)
RESULTS = Path(command.__file__).parent / "results"


def brief(
    where: Where,
    seed: int,
    steps: int = 60,
    lr: float = 0.05,
    adam: bool = False,
    build: Callable[[], torch.nn.Module] = SMALL,
) -> Task:
    """The digits, a network of four layers, a few steps."""
    recipe = Recipe(steps, 32, lr, optimizer=Adam() if adam else Sgd())
    return ImageTask("digits", recipe, digits(seed), build, where.device)


def macs(task: Task, model: torch.nn.Module) -> int:
    return niwaki.search_space(model, task.example(), rehearse=False).cost().macs


LATER = {arm for arm in ARMS if arm.startswith("torch-pruning") or ARMS[arm].erases} | {*PRUNED_FIRST}


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm not in LATER])
def test_every_arm_learns_within_the_budget(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms, "SCORED", 1)  # second derivatives of more batches take most of the time of these tests
    task = brief(CPU, 0)
    run = ARMS[arm].train(Setting(task, 0, 0.5, widths=(5, 5, 11, 11) if ARMS[arm].needs_widths else None))
    share = macs(task, run.model) / macs(task, task.network())
    assert run.step == task.recipe.steps
    assert share == 1 if arm == "dense" else 0.42 < share <= 0.5
    assert task.evaluate(run.model) > 0.2  # of ten classes


def test_a_budget_may_be_a_share_of_the_units() -> None:
    task = brief(CPU, 0)
    run = ARMS["hesso"].train(Setting(task, 0, 0.3, limited="units"))
    units = niwaki.search_space(task.network(), task.example(), rehearse=False).num_units
    assert run.widths is not None and sum(run.widths) == int(0.3 * units)


@pytest.mark.parametrize("arm", ["prune-distilled-gentle", "prune-taylor-rounds", "prune-magnitude-repaired"])
def test_an_arm_that_prunes_first_learns_within_the_budget(arm: str) -> None:
    train, task = PRUNED_FIRST[arm], brief(CPU, 0)
    run = replace(train, rounds=min(train.rounds, 2))(Setting(task, 0, 0.5, moment=0.5))
    assert run.step == task.recipe.steps
    assert 0.42 < macs(task, run.model) / macs(task, task.network()) <= 0.5
    assert (run._distil is not None) == train.distilled
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(train.rate * 0.05 * task.recipe.factor(59))
    assert task.evaluate(run.model) > 0.2


def test_an_arm_that_is_distilled_learns_from_the_dense_network() -> None:
    task = brief(CPU, 0, 30)
    run = Training(task, 0)
    teacher, student = task.network(), task.network()
    run.finetune(student, teacher)
    run._batch = next(task.batches(0))
    apart = niwaki.distillation(teacher)(student, run._batch)
    assert float(apart.detach()) > 0
    torch.testing.assert_close(run.loss(), task.loss(student, run._batch) + apart)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if ARMS[arm].erases and not ARMS[arm].layers])
def test_every_arm_that_erases_learns_within_the_budget(arm: str) -> None:
    task = brief(CPU, 0, build=partial(SuperResNet, 10, 1, (8, 16), (1, 1), (1, 3)))
    run = ARMS[arm].train(Setting(task, 0, 0.6))
    assert run.step == task.recipe.steps
    assert 0.2 < macs(task, run.model) / macs(task, task.network()) <= 0.6
    dense, small = (len(list(model.modules())) for model in (task.network(), run.model))
    assert small < dense and task.evaluate(run.model) > 0.2  # of ten classes


@pytest.mark.parametrize("arm", [arm for arm in ARMS if ARMS[arm].layers])
def test_arms_of_whole_layers_leave_fewer_layers(arm: str) -> None:
    load()
    text = np.arange(400) % 7
    sizes = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    build = partial(llama, **sizes, num_attention_heads=2, num_key_value_heads=2)
    recipe = Recipe(60, 4, 1e-2, optimizer=Adam())
    task = LanguageTask("tiny", recipe, Texts(text, text, text), build, CPU.device, 8, 8, fresh)
    run = ARMS[arm].train(Setting(task, 0, 0.7))
    assert run.model.config.num_hidden_layers == 2 == len(run.model.model.layers)  # type: ignore[union-attr, arg-type]
    assert task.evaluate(run.model) < task.evaluate(task.network())


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.startswith("torch-pruning")])
def test_torch_pruning_meets_the_same_budget(arm: str) -> None:
    pytest.importorskip("torch_pruning")
    task = brief(CPU, 0)
    run = ARMS[arm].train(Setting(task, 0, 0.5))
    assert 0.42 < macs(task, run.model) / macs(task, task.network()) <= 0.5
    assert task.evaluate(run.model) > 0.2


def test_a_narrow_network_has_the_widths_and_weights_of_its_own_size() -> None:
    task = brief(CPU, 0)
    run = Training(task, 0, keep=(3, 5, 7, 9))
    assert run.widths == (3, 5, 7, 9)
    assert [group.units for group in run.space().groups] == [3, 5, 7, 9]
    for name, parameter in run.model.named_parameters():
        if parameter.ndim == 4:
            bound = float(parameter.detach().abs().max()) * parameter[0].numel() ** 0.5
            assert 0.9 < bound <= 1, f"{name} is not uniform within one over the root of its fan-in"
    owned = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in run.model.parameters()}


@pytest.mark.parametrize("adam", [False, True])
def test_a_cut_in_the_middle_changes_nothing(adam: bool) -> None:
    task = brief(CPU, 0, 40, 0.01 if adam else 0.05, adam)
    cut, whole = Training(task, 0), Training(task, 0)
    schedule = niwaki.Schedule(start=4, until=14)
    for run in (cut, whole):
        run.attach("hesso", niwaki.Budget(macs=0.5), schedule)
        run.advance(schedule.until - 1)
        run.model.double()
    whole._until = 1_000  # which is never reached: it stays as large as it is
    task._mean, task._std = task._mean.double(), task._std.double()  # type: ignore[attr-defined]
    task._ready = lambda x: x.double().sub(task._mean).div(task._std)  # type: ignore[attr-defined]
    method = whole._method
    assert method is not None
    x = task.example()
    for run in (cut, whole):
        run.optimizer.state.clear()
        run.advance(20)
    small = niwaki.cut(whole.model, method.plan())
    assert sum(p.numel() for p in cut.model.parameters()) == sum(p.numel() for p in small.parameters())
    torch.testing.assert_close(cut.model.eval()(x), small.eval()(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("curve", [OneCycle(0.2), OneCycle(0.2, low=0.2), Cosine(0.05)])
def test_learning_rates_rise_to_the_peak_and_fall_to_zero(curve: OneCycle | Cosine) -> None:
    factors = [Recipe(1000, curve=curve).factor(step) for step in range(1000)]
    peak = round(1000 * curve.warm)
    assert max(factors) == pytest.approx(1, abs=0.02) and abs(factors.index(max(factors)) - peak) <= 1
    assert (np.diff(factors[:peak]) > 0).all() and (np.diff(factors[peak:]) < 0).all()
    assert factors[0] == pytest.approx(getattr(curve, "low", 0.0), abs=0.02) and 0 < factors[-1] < 0.001


def test_augmentations_move_and_mirror_whole_epochs() -> None:
    x = torch.randint(1, 256, (40, 3, 9, 9), dtype=torch.uint8)
    rows = torch.randperm(40)

    def epoch(number: int) -> Epoch:
        return Epoch(7, number, rows, 8, torch.Generator().manual_seed(number))

    flipped = Flip()(x, epoch(0))
    mirrored = [bool((a == b.flip(2)).all()) for a, b in zip(flipped, x, strict=True)]
    assert (
        all(m or bool((a == b).all()) for m, a, b in zip(mirrored, flipped, x, strict=True)) and 8 < sum(mirrored) < 32
    )
    first, second = (AlternatingFlip()(x, epoch(number)) for number in (0, 1))
    assert (first == second.flip(3)).all(), "what is mirrored in one epoch is not in the next"
    moved = Shift(2)(x, epoch(0))
    places = set()
    for image, original in zip(moved, x, strict=True):
        padded = torch.nn.functional.pad(original, (2,) * 4)
        found = [(t, s) for t in range(5) for s in range(5) if (padded[:, t : t + 9, s : s + 9] == image).all()]
        assert len(found) == 1
        places.update(found)
    assert len(places) > 12
    together = BatchShift(2)(x, epoch(0))
    padded = torch.nn.functional.pad(x.float(), (2,) * 4, mode="reflect").to(torch.uint8)
    for start in range(0, 40, 8):
        batch = slice(start, start + 8)
        assert any(
            (padded[batch, :, t : t + 9, s : s + 9] == together[batch]).all() for t in range(5) for s in range(5)
        )


def test_a_summed_loss_is_the_mean_times_the_batch() -> None:
    scores, labels = torch.randn(6, 10), torch.arange(6)
    torch.testing.assert_close(CrossEntropy(0.2, summed=True)(scores, labels), 6 * CrossEntropy(0.2)(scores, labels))


def test_held_out_images_are_neither_trained_on_nor_tested_on() -> None:
    data = digits(0)
    parts = [{x.numpy().tobytes() for x in part[0]} for part in (data.train, data.held_out, data.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) >= 1790  # a few digits are drawn twice
    assert str(data) == "1213 + 134 + 450 images"


def test_the_command_resumes_and_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TASKS, "digits", brief)
    arms = ["--tasks", "digits", "--arms", "dense", "hesso", "narrow", "--out", str(tmp_path)]

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["accuracy", *arguments])
        return command.main()

    assert run("run", *arms, "--budget", "0.5", "--seeds", "1", "--device", "cpu") == 0
    file = tmp_path / "digits.jsonl"
    before, rows = file.read_text(), read(tmp_path)
    assert [row.arm for row in rows] == ["dense", "hesso", "narrow"]
    assert rows[2].widths == rows[1].widths and rows[2].macs == rows[1].macs
    lines = before.splitlines(keepends=True)
    file.write_text(lines[0] + lines[1] + lines[2][:40])  # killed while it wrote
    assert run("run", *arms, "--budget", "0.5", "--seeds", "1", "--device", "cpu") == 0
    again = read(tmp_path)
    assert file.read_text().startswith(lines[0] + lines[1]) and len(again) == 3
    assert again[2].test == rows[2].test, "the same seed gives the same network"
    capsys.readouterr()
    assert run("show", *arms) == 0
    assert "| digits | 50% of the MACs | 35% | hesso |" in capsys.readouterr().out


def test_a_narrow_network_waits_for_the_one_whose_widths_it_has() -> None:
    job = Job("digits", "narrow", 0.5, 0.0, 1, TASKS["digits"](CPU, 1).fingerprint)
    with pytest.raises(
        SystemExit, match="has the widths of 'hesso' with seed 0 at 50% of the MACs, which is not among"
    ):
        protocol.trained(job, CPU, [])


def test_jobs_come_seed_by_seed_and_methods_also_at_their_own_moment() -> None:
    found = jobs(CPU, ["digits"], ["dense", "hesso", "narrow", "random"], [0.5, 0.2], [0.2], range(2))
    assert [job.seed for job in found] == sorted(job.seed for job in found)
    assert [(job.arm, job.budget, job.moment) for job in found if job.seed == 1] == [
        ("dense", 1.0, 0.0),
        ("hesso", 0.5, 0.2),
        ("hesso", 0.5, 0.35),
        ("narrow", 0.5, 0.0),
        ("random", 0.5, 0.2),
        ("hesso", 0.2, 0.2),
        ("hesso", 0.2, 0.35),
        ("narrow", 0.2, 0.0),
        ("random", 0.2, 0.2),
    ]
    assert len({job.recipe for job in found}) == 1
    assert TASKS["digits"](CPU, 0).fingerprint != TASKS["digits"](replace(CPU, smoke=True), 0).fingerprint


def test_a_recipe_has_the_fingerprint_of_the_rows_that_were_trained_with_it(tmp_path: Path) -> None:
    """A class or field that gets another name would orphan all rows on disk."""
    (tmp_path / "fashion_mnist").mkdir()
    x, y = np.zeros((5256, 28, 28), np.uint8), np.zeros(5256, np.uint8)
    np.savez(tmp_path / "fashion_mnist/fashion_mnist.npz", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
    assert TASKS["fashion"](Where(tmp_path, CPU.device), 0).described == (
        "fashion: resnet8 16-32-64, 256 + 5000 + 10 images, CrossEntropy(smoothing=0.1, summed=False), Flip() "
        "Shift(pixels=2), bfloat16; Recipe(steps=20, batch=128, lr=0.1, weight_decay=0.0005, "
        "optimizer=Sgd(momentum=0.9, nesterov=True), curve=OneCycle(warm=0.2, low=0.0))"
    )
    whole = TASKS["fashion"](Where(tmp_path, CPU.device, all_images=True), 0)
    assert "5256 + 5000 + 10 images" in whole.described and whole.recipe.steps == 10 * (5256 // 128)
    stored = {(row.recipe, hashlib.sha256(row.about.encode()).hexdigest()[:10]) for row in read(RESULTS)}
    assert all(recipe == digest for recipe, digest in stored)


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="needs fashion_mnist/fashion_mnist.npz in the folder of the data: give it"):
        TASKS["fashion"](CPU, 0)
    with pytest.raises(SystemExit, match="There is no fashion_mnist/fashion_mnist.npz in"):
        TASKS["fashion"](Where(tmp_path, CPU.device), 0)


def rows_of(folder: Path, values: dict[str, list[float]], moment: float = 0.35, measure: str = "accuracy") -> list[Row]:
    """Made-up results, by arm and seed."""
    for arm, tests in values.items():
        budget = 0.3 if ARMS[arm].cuts else 1.0
        for seed, test in enumerate(tests):
            job = Job("digits", arm, budget, moment if ARMS[arm].prunes else 0.0, seed, "abc")
            seconds = 10.0 * (seed + 1) * (1 if arm == "dense" else 0.5)
            row = Row(
                *(job.task, job.arm, job.budget, job.moment, job.seed, job.recipe, "in words", measure),
                *(test, test - 0.1, budget, budget, 10, 10, (), seconds, "cpu", 1, "123", "0", "0"),
            )
            append(folder, row)
    return read(folder)


def test_arms_are_compared_seed_by_seed_with_the_best_baseline(tmp_path: Path) -> None:
    values = {"dense": [0.9, 0.92], "hesso": [0.8, 0.84], "narrow": [0.75, 0.77], "random": [0.6, 0.85]}
    rows = rows_of(tmp_path, values)
    every = summaries(rows)
    assert [one.first.arm for one in every] == ["dense", "narrow", "hesso", "random"]
    hesso = every[2]
    best = best_baseline(hesso, every)
    assert best is not None and best.first.arm == "narrow"
    gap = hesso.over(best)
    assert gap is not None and (gap.mean, gap.error) == (pytest.approx(6.0), pytest.approx(1.0))
    assert hesso.time(every[0]) == 0.5
    line = "| digits | 30% of the MACs | 35% | hesso | 82.00 | 80.00 84.00 "
    line += "| +6.00 ± 1.00 (narrow) | 30.0% | 30.0% | 0.50 |"
    assert line in markdown(rows)
    assert "| hesso | 72.00 | 70.00 74.00 |" in markdown(rows, held_out=True)
    losses = summaries(rows_of(tmp_path / "b", {"hesso": [1.5], "narrow": [1.4], "random": [1.6]}, measure="loss"))
    best = best_baseline(losses[1], losses)
    assert best is not None and best.first.arm == "narrow", "the least loss is the best"
    assert missing([rows[0].job, replace(rows[0].job, seed=5)], rows) == [replace(rows[0].job, seed=5)]


def test_plots_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    values = {"dense": [0.9, 0.92], "hesso": [0.8, 0.84], "random": [0.6, 0.85]}
    rows_of(tmp_path, values)
    made = plots(rows_of(tmp_path, {"hesso": [0.7, 0.8]}, moment=0.2), tmp_path / "plots", 0.35)
    assert [path.name for path in made] == ["macs.png", "time.png", "moment.png"]
    assert all(path.stat().st_size > 1000 for path in made)


@pytest.mark.parametrize("blocks", [1, 3])
def test_residual_networks_run(blocks: int) -> None:
    assert CifarResNet(10, 1, blocks)(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_the_first_layer_of_airbench_whitens_patches() -> None:
    images = torch.randn(50, 3, 12, 12).cumsum(2)  # rows that depend on one another
    weight = whitening(images)
    assert weight.shape == (24, 3, 2, 2) and torch.equal(weight[12:], -weight[:12])
    seen = torch.nn.functional.conv2d(images, weight[:12]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(seen @ seen.T / seen.shape[1], torch.eye(12), atol=2e-3, rtol=0)


def airbench(where: Where, steps: int = 4) -> Task:
    """Recipe B with noise for images, narrow."""
    part = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)
    data = Dataset(part, part, part, torch.full((3,), 128.0), torch.full((3,), 64.0))
    build = partial(Airbench, whitening(torch.randn(8, 3, 32, 32)), widths=(4, 6, 6))
    recipe = Recipe(steps, 8, 1e-3, 1e-3, AirbenchSgd(whitening=0.5), OneCycle(0.2, 0.2))
    loss = CrossEntropy(0.2, summed=True)
    return ImageTask("airbench", recipe, data, build, where.device, loss=loss, ignored=("whiten",), channels_last=True)


def test_airbench_learns_as_its_recipe_says() -> None:
    run = Training(airbench(CPU), 0)
    model = run.model
    assert isinstance(model, Airbench)
    first = model.groups[0].conv2.weight
    assert torch.equal(
        first, torch.eye(4)[:, :, None, None] * torch.nn.functional.pad(torch.ones(1, 1, 1, 1), (1,) * 4)
    )
    frozen, bias = model.whiten.weight.clone(), [model.whiten.bias.detach().clone()]  # type: ignore[union-attr]
    for step in range(4):
        run.advance(step + 1)
        bias.append(model.whiten.bias.detach().clone())  # type: ignore[union-attr]
    assert not torch.equal(bias[0], bias[1]) and not torch.equal(bias[1], bias[2])
    assert torch.equal(bias[2], bias[3]) and torch.equal(bias[3], bias[4]), "it learns for half of the run"
    assert torch.equal(model.whiten.weight, frozen)
    assert (model.groups[0].norm1.weight == 1).all()
    assert (model.groups[0].norm1.bias != 0).all()


def test_a_unit_of_airbench_that_has_faded_is_zero_behind_its_norm() -> None:
    run = Training(airbench(CPU, 20), 0)
    run.attach("hesso", niwaki.Budget(macs=0.5), niwaki.Schedule(start=2, until=14))
    method = run._method
    run._until = 1_000
    run.advance()
    assert method is not None
    whole, cut = run.model.double().eval(), niwaki.cut(run.model, method.plan()).eval()
    x = run.task.example().double()
    torch.testing.assert_close(whole(x), cut(x), rtol=1e-9, atol=1e-9)


def test_rates_drop_at_shares_of_the_run() -> None:
    recipe = Recipe(10, curve=Drops((0.3, 0.8), 0.2))
    assert [recipe.factor(step) for step in range(10)] == pytest.approx([1.0] * 3 + [0.2] * 5 + [0.04] * 2)


def test_an_arm_that_needs_no_time_may_cut_first() -> None:
    found = jobs(CPU, ["digits"], ["hesso", "magnitude", "torch-pruning"], [0.5], [0.0, 0.1], [0])
    assert [(job.arm, job.moment) for job in found] == [
        ("hesso", 0.1),
        ("hesso", 0.35),
        ("magnitude", 0.0),
        ("magnitude", 0.1),
        ("torch-pruning", 0.1),
    ]
    run = ARMS["magnitude"].train(Setting(brief(CPU, 0, 3), 0, 0.5, moment=0.0))
    assert run.step == 3 and run.widths is not None


def test_weights_are_saved_with_what_is_known_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "digits", partial(brief, steps=3))
    (job,) = jobs(CPU, ["digits"], ["dense"], [0.5], [0.35], [1])
    row = protocol.trained(job, CPU, [], tmp_path)
    with safe_open(tmp_path / "digits-dense-1-0-1.safetensors", "pt") as file:
        assert file.metadata()["test"] == str(row.test) and file.metadata()["seed"] == "1"
        assert set(file.keys()) == set(brief(CPU, 1).network().state_dict())


def test_a_fresh_llama_is_drawn_as_transformers_draws_it() -> None:
    pytest.importorskip("transformers")
    load()
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1}
    model = llama(**sizes, num_attention_heads=4, num_key_value_heads=4, head_dim=8)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    fresh(model)
    for name, parameter in model.named_parameters():
        assert parameter.mean().item() == pytest.approx(expected[name].mean().item(), abs=0.005), name
        assert parameter.std().item() == pytest.approx(expected[name].std().item(), abs=0.005), name
