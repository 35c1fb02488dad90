"""Random networks as programs that one can read: series-parallel ones, and others in which anything reads anything.

`drawn(seed)` writes the source of a module, line by line; `Drawn.build` runs it.
"""

from __future__ import annotations

import linecache
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

HEAD = "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n\n\n"


@dataclass(frozen=True, slots=True)
class World:
    """What the tensors of a network are: their shape for a width, and how layers are written for them."""

    shape: Callable[[int], str]
    layer: Callable[[_Writer, int, int], str]
    norms: tuple[str, ...]
    pools: tuple[str, ...]
    channel: int  # the dimension
    table: Callable[[int], str]  # of a parameter that is added
    head: str
    spread: str  # what makes [B, width] of a value


def _convolution(writer: _Writer, before: int, after: int) -> str:
    kernel = int(writer.rng.choice([1, 3]))
    more = [f"padding={kernel // 2}"] if kernel > 1 else []
    if before == after and writer.chance(0.15):
        more.append(f"groups={writer.rng.choice([before, 2 if before % 2 == 0 else 1])}")
    if writer.chance(0.4):
        more.append("bias=False")
    return f"nn.Conv2d({', '.join([str(before), str(after), str(kernel), *more])})"


def _linear(writer: _Writer, before: int, after: int) -> str:
    return f"nn.Linear({before}, {after}{', bias=False' if writer.chance(0.3) else ''})"


IMAGES = World(
    shape=lambda width: f"2, {width}, 4, 4",
    layer=_convolution,
    norms=("nn.BatchNorm2d({0})", "nn.BatchNorm2d({0})", "nn.GroupNorm(2, {0})", "nn.InstanceNorm2d({0}, affine=True)"),
    pools=("nn.MaxPool2d(3, 1, 1)", "nn.AvgPool2d(3, 1, 1)"),
    channel=1,
    table=lambda width: f"1, {width}, 4, 4",
    head="nn.Conv2d({0}, 3, 1)",
    spread="{0}.mean((2, 3))",
)
TOKENS = World(
    shape=lambda width: f"2, 5, {width}",
    layer=_linear,
    norms=("nn.LayerNorm({0})", "nn.RMSNorm({0}, eps=1e-6)"),
    pools=(),
    channel=2,
    table=lambda width: f"1, 5, {width}",
    head="nn.Linear({0}, 3)",
    spread="{0}.mean(1)",
)
VECTORS = World(
    shape=lambda width: f"4, {width}",
    layer=_linear,
    norms=("nn.BatchNorm1d({0})", "nn.LayerNorm({0})"),
    pools=(),
    channel=1,
    table=lambda width: f"1, {width}",
    head="nn.Linear({0}, 3)",
    spread="{0}.clone()",
)
WORLDS = (IMAGES, IMAGES, TOKENS, VECTORS)

FUNCTIONS = (
    "torch.relu({0})", "torch.relu({0})", "F.gelu({0})", "F.silu({0})", "torch.tanh({0})", "F.leaky_relu({0}, 0.1)",
    "torch.sigmoid({0})", "{0} * 2", "{0} + 1", "-{0}", "{0}.abs()", "{0}.exp()", "{0}.square()",
    "F.hardswish({0})", "{0}.contiguous()",
)  # fmt: skip
IN_PLACE = ("F.relu({0}, inplace=True)", "{0}.mul_(0.5)", "F.silu({0}, inplace=True)", "{0}.tanh_()")
WIDTHS = (4, 6)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A network by its source. ``inputs``: the shapes of what it is called with."""

    seed: int
    source: str
    inputs: tuple[tuple[int, ...], ...]

    def build(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The module `Net` with random weights, and its inputs, in float64."""
        file = f"<network {self.seed}>"
        linecache.cache[file] = len(self.source), None, self.source.splitlines(keepends=True), file
        names: dict[str, type[nn.Module]] = {}
        exec(compile(self.source, file, "exec"), names)
        torch.manual_seed(self.seed)
        return names["Net"]().double(), tuple(torch.randn(shape, dtype=torch.float64) for shape in self.inputs)


@dataclass(slots=True)
class _Writer:
    """Writes a module, a line of `__init__` and of `forward` at a time. ``widths`` of all values; ``open``: values that
    may be written to without a loss for the gradients, as long as nothing has read them."""

    rng: np.random.Generator
    world: World
    wild: bool  # writes to what others have read
    layers: list[str] = field(default_factory=list)
    shared: list[tuple[str, int, int]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    read: Counter[str] = field(default_factory=Counter)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def one_of(self, choices: Sequence[str]) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def value(self, text: str, width: int, reads: Sequence[str], fresh: bool = False) -> str:
        """A new value."""
        name = f"h{len(self.widths)}"
        self.lines.append(f"{name} = {text}")
        self.widths[name] = width
        self.read.update(reads)
        if fresh:
            self.open.add(name)
        return name

    def member(self, text: str) -> str:
        self.layers.append(f"self.m{len(self.layers)} = {text}")
        return f"self.m{len(self.layers) - 1}"

    def parameter(self, shape: str) -> str:
        return self.member(f"nn.Parameter(torch.rand({shape}) + 0.5)")

    def writable(self, name: str) -> bool:
        return (name in self.open and not self.read[name]) or (self.wild and name in self.open)

    # ------------------------------------------------------------------------------------------- operators

    def layer(self, x: str, width: int) -> str:
        """A layer with weights, at times one that is there already."""
        before = self.widths[x]
        again = [name for name, wide, narrow in self.shared if (wide, narrow) == (before, width)]
        if again and self.chance(0.08):
            name = self.one_of(again)
        else:
            name = self.member(self.world.layer(self, before, width))
            self.shared.append((name, before, width))
        return self.value(f"{name}({x})", width, [x], fresh=True)

    def unary(self, x: str) -> str:
        """Something of one value."""
        width, dice = self.widths[x], self.rng.random()
        if dice < 0.45:
            return self.layer(x, width if self.chance(0.7) else int(self.rng.choice(WIDTHS)))
        if dice < 0.6:
            norm = self.member(self.one_of(self.world.norms).format(width))
            return self.value(f"{norm}({x})", width, [x], fresh=True)
        if dice < 0.8:
            return self.value(self.one_of(FUNCTIONS).format(x), width, [x])
        if dice < 0.87 and self.writable(x):
            return self.value(self.one_of(IN_PLACE).format(x), width, [x])
        if dice < 0.92 and self.world.pools:
            pool = self.member(self.one_of(self.world.pools))
            return self.value(f"{pool}({x})", width, [x])
        if dice < 0.95:
            return self.value(f"{self.member(self.one_of(('nn.Identity()', 'nn.Dropout(0.1)')))}({x})", width, [x])
        if dice < 0.98:
            shape = "{0}, 1, 1" if self.world is IMAGES else "{0}"
            return self.value(f"{x} * {self.parameter(shape.format(width))}", width, [x])
        return self.value(f"{x} + {self.parameter(self.world.table(width))}", width, [x])

    def join(self, a: str, b: str) -> str:
        """Something of two values; both may be one."""
        dice = self.rng.random()
        if dice < 0.2:
            both = [a, b] if self.chance(0.8) else [a, b, a]
            width = sum(self.widths[one] for one in both)
            made = self.value(f"torch.cat([{', '.join(both)}], {self.world.channel})", width, both)
            return self.layer(made, int(self.rng.choice(WIDTHS))) if width > 12 else made
        if self.widths[a] != self.widths[b]:
            b = self.layer(b, self.widths[a])
        width, both = self.widths[a], [a, b]
        if dice < 0.35 and self.writable(a):
            self.lines.append(f"{a} += {b}")
            self.read.update([b])
            return a
        if dice < 0.8:
            return self.value(f"{a} + {b}", width, both, fresh=True)
        text = self.one_of(
            (
                "torch.add({0}, {1}, alpha=0.5)",
                "{0} - {1}",
                "{0} * {1}",
                "{0} * torch.sigmoid({1})",
                "torch.maximum({0}, {1})",
                "torch.stack([{0}, {1}]).mean(0)",
                "torch.stack([{0}, {1}]).sum(0)",
                "sum([{0}, {1}])",
                "torch.relu({0}) + 0.5 * {1}",
            )
        )
        return self.value(text.format(a, b), width, both)

    # ------------------------------------------------------------------------------------------- shapes of networks

    def series_parallel(self, x: str, size: int) -> str:
        """Parts in a row, or side by side and joined, down to single operators."""
        if size <= 1:
            return self.unary(x)
        if self.chance(0.5):
            half = int(self.rng.integers(1, size))
            return self.series_parallel(self.series_parallel(x, half), size - half)
        branches = int(self.rng.integers(2, 4))
        made = [x if self.chance(0.25) else self.series_parallel(x, max(1, size // branches)) for _ in range(branches)]
        total = made[0]
        for other in made[1:]:
            total = self.join(total, other)
        return total

    def irregular(self, start: Sequence[str], size: int) -> str:
        """Operators that read any of those before, recent ones more often."""
        known = list(start)

        def any_of_them() -> str:
            return known[-1 - min(int(self.rng.geometric(0.4)) - 1, len(known) - 1)]

        for _ in range(size):
            x = any_of_them()
            known.append(self.join(x, any_of_them()) if self.chance(0.45) else self.unary(x))
        return self.gathered(known[-1]) if self.chance(0.5) else known[-1]

    def gathered(self, last: str) -> str:
        """All that nothing has read, joined, so that little is computed in vain; ``last`` if there is no such thing."""
        loose = [name for name in self.widths if name.startswith("h") and not self.read[name]]
        total, *others = loose or [last]
        for other in others:
            total = self.join(total, other)
        return total


def drawn(seed: int) -> Drawn:
    """The random network of this number."""
    rng = np.random.default_rng(seed)
    writer = _Writer(rng, WORLDS[int(rng.integers(len(WORLDS)))], wild=bool(rng.random() < 0.1))
    inputs = 2 if writer.chance(0.2) else 1
    starts = []
    for number in range(inputs):
        writer.widths[f"x{number}"] = 3
        starts.append(writer.layer(f"x{number}", int(rng.choice(WIDTHS))))
    size = int(rng.integers(4, 14))
    if writer.chance(0.5):
        last = starts[0]
        for number, start in enumerate(starts):
            last = writer.series_parallel(last if not number else writer.join(last, start), size)
    else:
        last = writer.irregular(starts, size)
    results = [last]
    if writer.chance(0.2):
        results.append(writer.one_of(sorted(name for name in writer.widths if name.startswith("h"))))
    returned = [_result(writer, one) for one in results]
    shapes = [tuple(int(one) for one in writer.world.shape(3).split(",")) for _ in starts]
    source = (
        f"{HEAD}class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        + "".join(f"        {line}\n" for line in writer.layers)
        + f"\n    def forward(self, {', '.join(f'x{number}' for number in range(inputs))}):\n"
        + "".join(f"        {line}\n" for line in writer.lines)
        + f"        return {', '.join(returned)}\n"
    )
    return Drawn(seed, source, tuple(shapes))


def _result(writer: _Writer, x: str) -> str:
    """An output: scores of all positions or of their mean, or the value itself."""
    dice = writer.rng.random()
    if dice < 0.2:
        return x
    if dice < 0.6:
        return f"{writer.member(writer.world.head.format(writer.widths[x]))}({x})"
    head = writer.member(f"nn.Linear({writer.widths[x]}, 3)")
    return f"{head}({writer.world.spread.format(x)})"
