"""Do methods train the same as before? Old and new code, in one run on one machine: `make replay BASE=<commit>`.

    python -m benchmarks.replay BASE

Checks BASE out beside this working tree and trains three networks with six methods in both: in float64, on one thread,
30 steps on the same data. Each of the 18 trainings has to come out in one of two ways: all parameters and buffers are
equal bit by bit; or, where sums are only added up in another order, the plans are equal and no entry is further away
than 1e-9 of the largest entry of the network. Exits with 1 otherwise.

Both sides run this very file, so it uses only what `niwaki` has offered at its top level for long.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki

ROOT = Path(__file__).parents[1]
STEPS, WITHIN = 30, 1e-9
Record = dict[str, Any]


# --------------------------------------------------------------------------------------------------------- networks


class Pictures(nn.Module):
    """Convolutions with batch norms in a residual block, and a classifier of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.up, self.between = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.down = nn.Conv2d(12, 8, 1)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.down(torch.relu(self.between(self.up(x))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


class Words(nn.Module):
    """Attention of four heads and a gated layer in a residual stream with norms, over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 4, 4
        self.embed, self.head = nn.Embedding(11, 16), nn.Linear(16, 5, bias=False)
        self.before, self.between = nn.RMSNorm(16), nn.RMSNorm(16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=False) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(16, 20), nn.Linear(16, 20), nn.Linear(20, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        rows, length, _ = x.shape
        y = self.before(x)
        q, k, v = (
            part(y).view(rows, length, self.heads, self.size).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.o(y.reshape(rows, length, self.heads * self.size))
        y = self.between(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(x.mean(1))


class Signals(nn.Module):
    """A GRU between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.rnn = nn.Linear(6, 12), nn.GRU(12, 10, batch_first=True)
        self.hidden, self.head = nn.Linear(10, 14), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rnn(torch.relu(self.inner(x)))[0][:, -1]
        return self.head(torch.relu(self.hidden(x)))


class Adapter(nn.Module):
    """A frozen linear layer with a low-rank product beside it, under the names that peft gives these."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.scaling = base, {"default": 1.5}
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.scaling["default"] * self.lora_B["default"](self.lora_A["default"](x))


def with_adapters(model: nn.Module) -> nn.Module:
    """``model`` frozen, with an adapter beside each linear layer but the head."""
    model.requires_grad_(False)
    for name, layer in list(model.named_children()):
        if isinstance(layer, nn.Linear) and name != "head":
            setattr(model, name, Adapter(layer))
    return model


@dataclass(frozen=True)
class Network:
    """A model, a batch of inputs [24, ...], and an optimizer."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]


NETWORKS = {
    "pictures": Network(
        Pictures, lambda: torch.randn(24, 3, 6, 6), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3)
    ),
    "words": Network(Words, lambda: torch.randint(0, 11, (24, 7)), lambda p: torch.optim.AdamW(p, 0.01)),
    "signals": Network(Signals, lambda: torch.randn(24, 5, 6), lambda p: torch.optim.Adam(p, 0.01)),
}


# --------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Parts:
    """What a method is attached to, with a loss over all data."""

    space: niwaki.SearchSpace
    optimizer: torch.optim.Optimizer
    budget: niwaki.Budget
    schedule: niwaki.Schedule
    loss: Callable[[], Tensor]

    @property
    def common(self) -> tuple[Any, ...]:
        """What every method takes first."""
        return self.space, self.optimizer, self.budget, self.schedule


METHODS: dict[str, Callable[[Parts], Any]] = {
    "HESSO": lambda parts: niwaki.HESSO(*parts.common),
    "HESSO-CRIC": lambda parts: niwaki.CRIC(*parts.common, loss=parts.loss),
    "HSPG": lambda parts: niwaki.HSPG(*parts.common),
    "AdaHSPG+": lambda parts: niwaki.AdaHSPG(*parts.common),
    "DHSPG": lambda parts: niwaki.DHSPG(*parts.common),
    "LHSPG": lambda parts: niwaki.LHSPG(*parts.common, loss=parts.loss),
}


def train(network: Network, method: str, steps: int = STEPS) -> Record:
    """Train ``network`` with ``method``: the plan, and all parameters and buffers after ``steps`` steps."""
    torch.manual_seed(0)
    model = network.build()
    model = (with_adapters(model) if method == "LHSPG" else model).double()
    inputs, labels = network.inputs(), torch.arange(24) % 5
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    space = niwaki.search_space(model, inputs[:2])
    optimizer = network.optimizer([p for p in model.parameters() if p.requires_grad])
    schedule = niwaki.Schedule(start=3, until=steps - 4, periods=3)

    def loss(rows: slice = slice(None)) -> Tensor:
        return F.cross_entropy(model(inputs[rows]), labels[rows])

    attached = METHODS[method](Parts(space, optimizer, niwaki.Budget(units=0.6), schedule, loss))
    for step in range(steps):
        optimizer.zero_grad()
        loss(slice(step % 3, None, 3)).backward()
        optimizer.step()
    plan = attached.plan()
    return {
        "kept": {name: list(kept) for name, kept in plan.kept.items()},
        "units": sum(plan.units.values()),
        "tensors": {name: value.detach().clone() for name, value in model.state_dict().items()},
    }


def record(path: Path) -> None:
    """Train all networks with all methods by the `niwaki` that is imported, and write what comes out to ``path``."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    records = {
        f"{method} on {name}": train(network, method) for name, network in NETWORKS.items() for method in METHODS
    }
    torch.save({"niwaki": niwaki.__file__, "records": records}, path)


# -------------------------------------------------------------------------------------------------------- comparing


def compared(old: Record, new: Record) -> tuple[bool, str]:
    """Whether two trainings have come out the same, and in which way or why not."""
    if set(old["tensors"]) != set(new["tensors"]):
        return False, f"the network has other tensors: {sorted(set(old['tensors']) ^ set(new['tensors']))[0]!r}"
    for name in sorted(set(old["kept"]) | set(new["kept"])):
        one, other = (side["kept"].get(name) for side in (old, new))
        if one != other:
            return False, f"the plans are different: of group {name!r} the old one keeps {one}, the new one {other}"
    left = sum(len(kept) for kept in new["kept"].values())
    apart, where, largest = 0.0, "", 0.0
    same = True
    for name, one in old["tensors"].items():
        other = new["tensors"][name]
        if one.shape != other.shape or not bool(one.isfinite().all() & other.isfinite().all()):
            return False, f"{name} has another shape, or entries that are not finite"
        same &= torch.equal(one, other)
        distance = float((one.double() - other.double()).abs().max())
        largest = max(largest, float(one.double().abs().max()))
        if distance > apart:
            apart, where = distance, name
    units = f"{left} of {new['units']} units kept"
    if same:
        return True, f"equal bit by bit, {units}"
    if apart <= WITHIN * largest:
        return True, f"equal plans, parameters within {apart / largest:.0e} of the largest, {units}"
    return False, f"equal plans, but {where} is {apart / largest:.0e} of the largest entry away"


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A working tree of ``commit``, for as long as it takes."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def recorded(tree: Path) -> dict[str, Record]:
    """What `record` finds with the code in ``tree``, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.pt"
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        # -P: this file's folder is not on the path
        command = [sys.executable, "-P", "-W", "ignore", __file__, "--record", str(path)]
        if subprocess.run(command, cwd=tree, env=environment).returncode:
            raise SystemExit(f"The trainings do not run with the code in {tree}; the error is above.")
        found = torch.load(path)
    if not Path(found["niwaki"]).is_relative_to(tree.resolve()):
        raise SystemExit(f"The code in {tree} should have run, but niwaki was imported from {found['niwaki']}.")
    records: dict[str, Record] = found["records"]
    return records


def main() -> int:
    """Print how each training has come out; 1 if any has come out differently."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__.split("\n")[0])
    parser.add_argument("base", nargs="?", default="HEAD", help="the commit to compare this working tree with")
    parser.add_argument("--record", type=Path, help="only train, and write what comes out to this file")
    options = parser.parse_args()
    if options.record is not None:
        record(options.record)
        return 0
    with checked_out(options.base) as tree:
        old = recorded(tree)
    new = recorded(ROOT)
    different = 0
    for name in new:
        same, how = compared(old[name], new[name])
        different += not same
        print(f"{name}: {'' if same else 'DIFFERENT, '}{how}")
    print(f"{len(new) - different} of {len(new)} trainings are the same as at {options.base}")
    return min(different, 1)


if __name__ == "__main__":
    sys.exit(main())
