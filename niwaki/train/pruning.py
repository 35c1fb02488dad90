"""Prune a network that was trained before: load it, prune, repair, check, measure, save."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.modes import eval_mode
from niwaki.core.space import SearchSpace
from niwaki.errors import RunError
from niwaki.networks import ImageTask, build_model, channels_of
from niwaki.networks.source import find
from niwaki.post_training.iterative import REPAIRS, Repair
from niwaki.post_training.named import SURGEON
from niwaki.post_training.prune import Pruned
from niwaki.report import RunReport, write_run_page
from niwaki.report.drawing import drawing
from niwaki.train.batches import Batches
from niwaki.train.data import Images, load_images
from niwaki.train.job import (
    check_output,
    device_named,
    facts_of,
    figures_of,
    held_by,
    latencies,
    save_run,
    versions,
)
from niwaki.train.recipe import check_weights, size_of
from niwaki.train.scores import accuracy, check_scores
from niwaki.train.trained_on import TrainedOn, trained_on
from niwaki.train.weights import with_weights

Told = Callable[[int, int, float], object]


@dataclass(frozen=True, slots=True)
class PruningRecipe:
    """The settings of `prune_trained`.

    ``model``: as in a `Recipe`. ``data``, ``image_size`` and ``seed``: as well; where they are None, those of the
    training, if there is a report beside the weights. ``weights``: a directory or a file, see `niwaki.train.weights`;
    only the factory of a file may do without. ``keep_macs``, ``keep_params`` and ``keep_memory``: fractions to keep in
    (0, 1] or absolute numbers above 1. ``method``: a criterion of `niwaki.score`, ``surgeon``, ``cap`` or ``hap``.
    ``rounds``, ``repair`` and ``refine``: as in `niwaki.prune`. ``images``: the number of training images for scores
    and repairs; ``repair_images``: the number for the last repair, by default the same.
    """

    model: str
    data: str | None = None
    weights: str | None = None
    keep_macs: float | None = None
    keep_params: float | None = None
    keep_memory: float | None = None
    method: str = SURGEON.name
    rounds: int | None = None
    repair: str | None = None
    refine: int = 0
    images: int = 1024
    repair_images: int | None = None
    batch_size: int = 128
    seed: int | None = None
    image_size: str | None = None

    def __post_init__(self) -> None:
        check_weights(self.weights)
        for name in ("images", "repair_images", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RunError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        self.size()
        if self.seed is not None and not 0 <= self.seed < 2**32:  # the range of numpy's generators
            raise RunError(f"seed is {self.seed}, but must be a whole number from 0 to {2**32 - 1}.")
        if self.repair is not None and self.repair not in REPAIRS:
            raise RunError(f"There is no repair {self.repair!r}. Choose {', '.join(REPAIRS[:-1])} or {REPAIRS[-1]}.")
        if self.keep_macs is self.keep_params is self.keep_memory is None:
            raise RunError("Say what to keep: give keep_macs, keep_params or keep_memory.")

    def size(self) -> tuple[int, int] | None:
        """Height and width that images are scaled to; None leaves them as they are."""
        return size_of(self.image_size)

    def budget(self) -> niwaki.Budget:
        """The budget that the cut network meets."""
        limits = (self.keep_macs, self.keep_params, self.keep_memory)
        macs, params, memory = (int(x) if x is not None and 1 < x < float("inf") else x for x in limits)
        return niwaki.Budget(macs=macs, params=params, memory=memory)


def prune_trained(
    recipe: PruningRecipe,
    out: Path,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    told: Told | None = None,
    measure_seconds: float = 2.0,
) -> RunReport:
    """Prune by ``recipe`` and write ``model.safetensors``, ``plan.json``, ``report.json`` and ``report.html`` to
    ``out``.

    Args:
        recipe: the network, the data and the settings.
        out: a directory; it must be empty or new unless it is overwritten.
        device: a torch device, such as ``cpu`` or ``cuda``.
        overwrite: replace the results of an earlier run in ``out`` when this one has finished.
        told: as for `niwaki.prune`.
        measure_seconds: the time to measure latency, for one image and for a batch.

    Raises:
        NiwakiError: something is missing or does not fit; nothing is written.
    """
    check_output(out)
    if not overwrite and (name := held_by(out)):
        raise RunError(
            f"{str(out)!r} already holds a run ({name}). Replace it with --overwrite, or choose another --out."
        )
    begin, budget = time.perf_counter(), recipe.budget()
    before = trained_on(recipe.weights)
    recipe = _completed(recipe, before)
    assert recipe.data is not None and recipe.seed is not None
    split = recipe.seed if before is None else before.split
    where = device_named(device)
    given = load_images(recipe.data, split, recipe.size())
    if before is not None:
        before.check(given, recipe.data, recipe.image_size)
    images = given.with_channels(channels_of(recipe.model, given.channels))
    batches = Batches(images, recipe.batch_size, recipe.seed, 0, where)
    model = _trained(recipe, images).to(where)
    check_scores(model, batches.example(2), ImageTask(images.classes, images.channels, images.size), recipe.model)
    data = _first(batches, recipe.images)
    if recipe.refine and len(data) < 2:
        raise RunError(
            f"--refine needs two batches or more, since some choose and others decide; {sum(len(y) for _, y in data)} "
            f"images are one batch of {recipe.batch_size}. Give more --images, or a smaller --batch-size."
        )
    pruned = niwaki.prune(
        *(model, batches.example(), budget),
        batches=data,
        loss_fn=_loss,
        method=recipe.method,
        rounds=recipe.rounds,
        repair=cast(Repair | None, recipe.repair),
        refine=recipe.refine,
        repair_batches=None if recipe.repair_images is None else _first(batches, recipe.repair_images),
        seed=recipe.seed,
        told=told,
    )
    seconds = time.perf_counter() - begin
    report = _report(recipe, split, model, pruned, batches, seconds, measure_seconds)
    save_run(pruned.model, report, out)
    write_run_page(report, out)
    return report


def _completed(recipe: PruningRecipe, before: TrainedOn | None) -> PruningRecipe:
    """The recipe with what it leaves to the training of the weights."""
    first = before or TrainedOn("digits", 0, None, None)
    return dataclasses.replace(
        recipe,
        data=first.data if recipe.data is None else recipe.data,
        seed=first.split if recipe.seed is None else recipe.seed,
        image_size=first.image_size if recipe.image_size is None else recipe.image_size,
    )


def _trained(recipe: PruningRecipe, images: Images) -> nn.Module:
    """The network with its weights, in eval mode."""
    found = find(recipe.model)
    if recipe.weights is None and found is not None and not found[0].trained:
        raise RunError(
            f"The network {recipe.model!r} has random weights, and there is nothing to keep of these. Give those of "
            "its training with --weights: a file of a state dictionary, or a directory that niwaki wrote."
        )
    torch.manual_seed(recipe.seed or 0)
    model = build_model(recipe.model, ImageTask(images.classes, images.channels, images.size))
    return (model if recipe.weights is None else with_weights(model, Path(recipe.weights))).eval()


def _first(batches: Batches, count: int) -> list[tuple[Tensor, Tensor]]:
    """The first ``count`` training images in the order of the seed, in batches; all of them where there are fewer."""
    full, rest = divmod(min(count, len(batches.images.train_y)), batches.batch_size)
    found = list(islice(batches.epoch(0), full + bool(rest)))
    if rest and len(found) > full:
        x, y = found[-1]
        found[-1] = x[:rest], y[:rest]
    return found


def _report(
    recipe: PruningRecipe,
    split: int,
    model: nn.Module,
    pruned: Pruned,
    batches: Batches,
    seconds: float,
    measure_seconds: float,
) -> RunReport:
    """The figures of both networks, and what the cut and the repair changed.

    Raises:
        RunError: the cut is not exact.
    """
    plan, small = pruned.plan, pruned.model
    with eval_mode(model):
        check = niwaki.check(model, plan, batches.example(8))
    if not check.holds:
        raise RunError(f"The small network would not equal the masked one, so nothing was saved. {check}")
    space: SearchSpace = niwaki.search_space(model, batches.example())
    measured = latencies(model, small, batches, measure_seconds)
    costs = {"dense": pruned.report.dense, "small": pruned.report.small}
    accuracies = {"dense": accuracy(model, batches), "small": accuracy(small, batches)}
    figures = {name: figures_of(name, accuracies[name], cost, measured) for name, cost in costs.items()}
    return RunReport(
        recipe=dataclasses.asdict(dataclasses.replace(recipe, repair=pruned.report.repair)),
        data=facts_of(batches.images, split),
        versions=versions(batches.device),
        dense=figures["dense"],
        small=figures["small"],
        coverage=space.coverage,
        check=dataclasses.asdict(check),
        kept={name: (len(kept), plan.units[name]) for name, kept in plan.kept.items()},
        history=(),
        seconds=seconds,
        repair={
            "method": pruned.report.method,
            "rounds": pruned.report.rounds,
            "accuracy_before": accuracy(niwaki.cut(model, plan), batches),
            "losses": dict(pruned.report.losses),
            "layers": pruned.report.layers,
            "left": dict(pruned.report.left),
        },
        ratios=tuple(both.ratios["small"] for both in measured),
        map=drawing(space, f"{recipe.model} on {batches.images.name}", plan),
    )


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of images and labels."""
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)
