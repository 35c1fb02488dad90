"""Mixtures of experts: the law holds on the inputs that were traced and on others, which reach other experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from law import deviations, random_plan, randomised
from torch import Tensor, nn

import niwaki
from niwaki.core.space import SearchSpace
from niwaki.surgery.zero import zeroed
from niwaki.verify import difference

WIDTH, INNER, EXPERTS = 12, 10, 4


class Expert(nn.Module):
    def __init__(self, sized: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.sized, self.width = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH), sized, WIDTH

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(x)))
        return y.view(-1, self.width) if self.sized else y


class ModuleList(nn.Module):
    """Top-k routing to a list of modules, in one of the ways in which people write it."""

    def __init__(self, how: str, k: int = 1, sized: bool = False) -> None:
        super().__init__()
        self.start, self.head, self.how, self.k, self.inner = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3), how, k, INNER
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert(sized) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.start(x)) * 3
        weight, chosen = self.gate(x).softmax(-1).topk(self.k, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            if self.how == "index_add":
                if len(row):
                    out.index_add_(0, row, expert(x[row]) * weight[row, place, None])
            elif self.how == "index_put":
                if row.numel() > 0:
                    out[row] += expert(x[row]) * weight[row, place, None]
            elif self.how == "mask":
                mask = (chosen == number).any(-1)
                if mask.any():
                    out[mask] = out[mask] + expert(x[mask]) * weight[mask].sum(-1, keepdim=True)
            elif self.how == "shared number":
                if len(row):
                    hidden = torch.relu(expert.up(x[row])).reshape(-1, self.inner)
                    out.index_add_(0, row, expert.down(hidden) * weight[row, place, None])
        return self.head(x + out)


class Lists(nn.Module):
    """The same with bare parameters, sorted by expert and split by counts read out of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.head, self.gate = (
            nn.Linear(5, WIDTH),
            nn.Linear(WIDTH, 3),
            nn.Linear(WIDTH, EXPERTS, bias=False),
        )
        self.up = nn.ParameterList(torch.randn(WIDTH, INNER) for _ in range(EXPERTS))
        self.down = nn.ParameterList(torch.randn(INNER, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.start(x)) * 3
        chosen = self.gate(x).argmax(-1)
        order = chosen.argsort()
        made = []
        for number, part in enumerate(x[order].split(chosen.bincount(minlength=EXPERTS).tolist())):
            if len(part):
                made.append(torch.relu(part @ self.up[number]) @ self.down[number])
        return self.head(x + torch.cat(made)[order.argsort()])


class Stacked(nn.Module):
    """All experts in one tensor: every one on every token and mixed, or chosen by a dispatch mask, or by number."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.start, self.head, self.gate = (
            nn.Linear(5, WIDTH),
            nn.Linear(WIDTH, 3),
            nn.Linear(WIDTH, EXPERTS, bias=False),
        )
        self.up, self.down = (
            nn.Parameter(torch.randn(EXPERTS, *shape)) for shape in ((WIDTH, 2 * INNER), (INNER, WIDTH))
        )
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.start(x)) * 3
        scores = self.gate(x).softmax(-1)
        if self.how == "chosen":
            chosen = scores.argmax(-1)
            a, b = torch.bmm(x[:, None], self.up[chosen]).squeeze(1).chunk(2, -1)
            y = torch.bmm((a.sigmoid() * b)[:, None], self.down[chosen]).squeeze(1)
            return self.head(x + y * scores.gather(1, chosen[:, None]))
        if self.how == "dispatch":
            scores = scores * torch.zeros_like(scores).scatter(1, scores.topk(2, -1).indices, 1.0)
        a, b = torch.einsum("nh,ehi->eni", x, self.up).chunk(2, -1)
        y = torch.einsum("eni,eih->neh", a.sigmoid() * b, self.down)
        return self.head(x + torch.einsum("neh,ne->nh", y, scores))


def gap(model: nn.Module, plan: niwaki.Plan, x: Any) -> float:
    dense = model.double()
    call = x if isinstance(x, dict) else {"x": x.double()}
    with torch.no_grad():
        ours, reference = niwaki.cut(dense, plan)(**call), zeroed(dense, plan)(**call)
    return difference([_result(ours)], [_result(reference)])


def _result(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def by_name(space: SearchSpace) -> dict[str, int]:
    return {group.name: group.units for group in space.groups}


HANDMADE: dict[str, Callable[[], nn.Module]] = {
    **{f"list, {how}": (lambda how=how: ModuleList(how)) for how in ("index_add", "index_put", "mask")},
    "list, top 2": lambda: ModuleList("index_add", k=2),
    "list, sized": lambda: ModuleList("index_add", sized=True),
    "list, shared number": lambda: ModuleList("shared number"),
    "parameter lists": Lists,
    **{f"stacked, {how}": (lambda how=how: Stacked(how)) for how in ("mixed", "dispatch", "chosen")},
}


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("name", HANDMADE)
def test_law_on_all_inputs(name: str, tokens: int) -> None:
    """With few tokens some experts are not reached by the trace. With others, they are, after the cut."""
    for seed in range(3):
        torch.manual_seed(seed)
        model = randomised(HANDMADE[name]())
        x = torch.randn(tokens, 5)
        space = niwaki.search_space(model, x)
        for trial in range(2):
            plan = random_plan(space, np.random.default_rng(trial))
            assert max(deviations(model, plan, x).values()) < 1e-5
            assert gap(model, plan, x) < 1e-10
            assert gap(model, plan, torch.randn(60, 5)) < 1e-10
            model.float()
