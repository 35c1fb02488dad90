"""A network of cells: nodes add up edges, and an edge adds up candidates, as architecture search has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Separable(nn.Sequential):
    """ReLU, a convolution of each channel by itself, a 1x1 convolution, BatchNorm."""

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )


class Edge(nn.Module):
    """All candidates for one edge, added up: separable, dilated, two poolings, and the input itself."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.separable = Separable(channels, 3, stride, 1)
        self.dilated = Separable(channels, 3, stride, 2)
        self.average = nn.Sequential(nn.AvgPool2d(3, stride, 1), nn.BatchNorm2d(channels))
        self.maximum = nn.MaxPool2d(3, stride, 1)
        self.skip = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(nn.Conv2d(channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H / stride, W / stride]."""
        total = self.separable(x) + self.dilated(x)
        total = total + self.average(x)
        total = total + self.maximum(x)
        return total + self.skip(x)  # type: ignore[no-any-return]


class Cell(nn.Module):
    """Nodes that read the two cells before and all nodes before; the cell's result is their concatenation."""

    def __init__(self, before: tuple[int, int], channels: int, nodes: int, halve: tuple[bool, bool]) -> None:
        super().__init__()
        self.entries = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels))
            for width in before
        )
        self.edges = nn.ModuleList(
            nn.ModuleList(Edge(channels, 2 if source < 2 and halve[source] else 1) for source in range(node + 2))
            for node in range(nodes)
        )

    def forward(self, older: Tensor, newer: Tensor) -> Tensor:
        """[B, nodes * channels, H, W], halved where the cell halves."""
        states = [entry(x) for entry, x in zip(self.entries, (older, newer), strict=True)]
        for edges in self.edges:
            assert isinstance(edges, nn.ModuleList)
            total, *others = (edge(state) for edge, state in zip(edges, states, strict=True))
            for other in others:
                total = total + other
            states.append(total)
        return torch.cat(states[2:], 1)


class CellNetwork(nn.Module):
    """Cells in a row, each of which reads the two before, in the manner of DARTS (arXiv 1806.09055) without its gates:
    all candidates of all edges are there, to erase from.

    Args:
        classes: of the images.
        channels: of the images.
        width: of the nodes of the first cells; twice that after each halving.
        cells: how many.
        nodes: of each cell.
        halving: the cells, by number, that halve the resolution; not the first, and no two in a row.
    """

    def __init__(
        self, classes: int, channels: int, width: int, cells: int = 3, nodes: int = 2, halving: tuple[int, ...] = (1,)
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        before, made = (width, width), []
        for number in range(cells):
            width *= 2 if number in halving else 1
            now = number in halving
            made.append(Cell(before, width, nodes, (now or number - 1 in halving, now)))
            before = (before[1], nodes * width)
        self.cells = nn.ModuleList(made)
        self.head = nn.Linear(before[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, channels, H, W]."""
        older = newer = self.stem(x)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        return self.head(newer.mean((2, 3)))  # type: ignore[no-any-return]
