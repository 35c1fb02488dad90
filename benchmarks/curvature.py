"""How well `relative_hessian_trace` and other criteria rank the units of a trained network, and what it costs.

python benchmarks/curvature.py [--seeds 3]
python benchmarks/curvature.py --stories DIRECTORY
python benchmarks/curvature.py --passes [--memory] [--images 32] [--size 64]

A convolutional network of about 5,000 weights is trained on the 8 x 8 digits of scikit-learn (1,797 images). The table
gives Spearman's rank correlation over all its units, the mean of the seeds, with the exact relative Hessian trace on
the same batches, and with the true growth of the loss on 512 images when each unit alone is set to zero.

``--stories``: the same with the true loss alone, of a sample of 300 units (hidden neurons and heads) of the language
model stories260K, on 32 windows of 128 tokens. The directory has weights/stories260K and text/tinystories_tok512.npz.
``--passes``: CPU time and peak memory of the probes of a ResNet-50, over those of a forward and backward pass.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn

import niwaki
from niwaki.criteria.trace import is_weight
from niwaki.surgery.zero import masked
from niwaki.testing.curvature import hessian_diagonal

PROBES = (1, 3, 10, 30, 100)
OTHERS = ("magnitude", "taylor1", "taylor2", "fisher", "hessian", "random")
Values = NDArray[np.float64]


def network() -> nn.Module:
    """Three convolutions with norms, and a classifier."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 8, 1), (8, 16, 2), (16, 24, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


def trained(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network after 300 steps, and images and labels."""
    torch.manual_seed(seed)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16 - 0.3
    y = torch.tensor(labels)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 300)
    for _ in range(300):
        batch = torch.randint(0, len(x), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    return model.eval(), x, y


def exact(space: niwaki.SearchSpace, x: Tensor, y: Tensor) -> Values:
    """The relative Hessian trace, entry by entry."""
    model = space.model
    pieces = [(g, s) for g in space.groups for s in g.slices if s.role.produces and s.parameter]
    parameters = dict(model.named_parameters())
    pieces = [(g, s) for g, s in pieces if is_weight(parameters[s.tensor], s.dim)]
    diagonal = hessian_diagonal(
        nn.functional.cross_entropy(model(x), y), {s.tensor: parameters[s.tensor] for _, s in pieces}
    )
    found = np.zeros(space.num_units)
    for group, piece in pieces:
        weight = parameters[piece.tensor].detach()
        for unit, index in enumerate(torch.from_numpy(piece.index)):
            own = weight.index_select(piece.dim, index)
            trace = float(diagonal[piece.tensor].index_select(piece.dim, index).sum())
            found[group.first + unit] += max(trace, 0) / (2 * own.numel()) * float(own.square().sum())
    return found


@torch.no_grad()
def removed(space: niwaki.SearchSpace, x: Tensor, y: Tensor) -> Values:
    """The growth of the loss when each unit alone is zero."""
    model, found = space.model, np.zeros(space.num_units)
    before = float(nn.functional.cross_entropy(model(x), y))
    for unit in range(space.num_units):
        keep = np.ones(space.num_units, dtype=bool)
        keep[unit] = False
        with masked(model, space.plan(keep)):
            found[unit] = float(nn.functional.cross_entropy(model(x), y)) - before
    return found


def correlations(seed: int) -> dict[str, tuple[float, float]]:
    """With the exact trace and with the true loss, by the name of the criterion."""
    model, x, y = trained(seed)
    space = niwaki.search_space(model, x[:1])
    batch, loss = [(x[:256], y[:256])], nn.CrossEntropyLoss()
    trace, truth = exact(space, *batch[0]), removed(space, x[:512], y[:512])
    found = {"exact relative trace": trace}
    for by in ("backward", "differences"):
        for probes in PROBES:
            how = niwaki.SecondDerivatives(by=by)  # type: ignore[arg-type]
            found[f"relative_hessian_trace, {probes} probes, {by}"] = niwaki.score(
                space, "relative_hessian_trace", batch, loss, probes=probes, seed=seed, second_derivatives=how
            ).values
    half = niwaki.search_space(model.bfloat16(), x[:1].bfloat16())
    for by in ("backward", "differences"):
        how = niwaki.SecondDerivatives(by=by)  # type: ignore[arg-type]
        found[f"relative_hessian_trace, 30 probes, {by}, bfloat16"] = niwaki.score(
            half,
            "relative_hessian_trace",
            [(x[:256].bfloat16(), y[:256])],
            lambda model, batch: loss(model(batch[0]).float(), batch[1]),
            seed=seed,
            second_derivatives=how,
        ).values
    model.float()
    for name in OTHERS:
        found[name] = niwaki.score(space, name, batch, loss, seed=seed).values
    return {name: (_rank(values, trace), _rank(values, truth)) for name, values in found.items()}


def stories(directory: Path, sample: int = 300) -> None:
    """Rank correlations of criteria with the true loss, in a trained language model."""
    from niwaki.networks.torchvision_cpu import load

    load()  # transformers imports torchvision
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(directory / "weights" / "stories260K").eval()
    with np.load(directory / "text" / "tinystories_tok512.npz") as archive:
        tokens = archive["val"]
    rows = torch.tensor(tokens[: 32 * 129].astype(np.int64)).view(32, 129)
    batches = list(rows.split(8))

    def loss(model: Any, batch: Tensor) -> Tensor:
        logits = model(input_ids=batch[:, :-1]).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    space = niwaki.search_space(model, {"input_ids": rows[:1, :-1]})
    found = {name: niwaki.score(space, name, batches, loss).values for name in ("relative_hessian_trace", *OTHERS)}
    units = np.random.default_rng(0).choice(space.num_units, min(sample, space.num_units), replace=False)
    with torch.no_grad():
        before, truth = float(loss(model, rows)), []
        for unit in units:
            keep = np.ones(space.num_units, dtype=bool)
            keep[unit] = False
            with masked(model, space.plan(keep)):
                truth.append(float(loss(model, rows)) - before)
    print(f"{len(units)} of {space.num_units} units in {len(space.groups)} groups")
    for name, values in found.items():
        print(f"{name:>24} {_rank(values[units], np.array(truth)):.3f}")


def passes(images: int, size: int, *, timed: bool = True) -> None:
    """What a probe costs, in forward and backward passes of the same batch of ``images`` of ``size`` pixels a side;
    without ``timed`` the memory alone."""
    from niwaki.networks.torchvision_cpu import load

    load()
    import torchvision

    model = torchvision.models.resnet50().eval()
    x, y = torch.randn(images, 3, size, size), torch.randint(0, 1000, (images,))
    space, loss = niwaki.search_space(model, x[:1]), nn.CrossEntropyLoss()

    def step() -> None:
        loss(model(x), y).backward()

    def probing(by: str, probes: int) -> Callable[[], object]:
        how = niwaki.SecondDerivatives(by=by)  # type: ignore[arg-type]
        return lambda: niwaki.score(
            space, "relative_hessian_trace", [(x, y)], loss, probes=probes, second_derivatives=how
        )

    base_memory, base_time = _most_alive(step), _seconds(lambda: [step() for _ in range(4)]) / 4 if timed else 0.0
    print(f"a forward and backward pass: {base_time:.2f} s, {base_memory / 2**20:.0f} MiB", flush=True)
    for by in ("backward", "differences"):
        memory = _most_alive(probing(by, 1))
        if not timed:
            print(f"{by}: {memory / base_memory:.2f} of the memory", flush=True)
            continue
        few, many = (_seconds(probing(by, probes)) for probes in (1, 4))
        each = (many - few) / 3
        print(
            f"{by}: {each / base_time:.2f} passes a probe, {(few + 29 * each) / base_time:.0f} passes for 30, "
            f"{memory / base_memory:.2f} of the memory",
            flush=True,
        )


def _most_alive(run: Callable[[], object]) -> float:
    """The most bytes of tensors that are alive at once."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    alive, most = 0, 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return float(most)


def _seconds(run: Callable[[], object]) -> float:
    """CPU time, in seconds."""
    begun = time.process_time()
    run()
    return time.process_time() - begun


def _rank(first: Values, second: Values) -> float:
    return float(spearmanr(first, second).statistic)


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stories", type=Path)
    parser.add_argument("--passes", action="store_true")
    parser.add_argument("--memory", action="store_true", help="with --passes: no times")
    parser.add_argument("--images", type=int, default=32, help="in the batch of --passes")
    parser.add_argument("--size", type=int, default=64, help="pixels a side of these images")
    given = parser.parse_args()
    if given.passes:
        return passes(given.images, given.size, timed=not given.memory)
    if given.stories is not None:
        return stories(given.stories)
    rows = [correlations(seed) for seed in range(given.seeds)]
    table = Table("criterion", "with the exact trace", "with the true loss")
    for name in rows[0]:
        table.add_row(name, *(f"{np.mean([row[name][column] for row in rows]):.3f}" for column in (0, 1)))
    Console(width=120).print(table)
    return None


if __name__ == "__main__":
    main()
