"""Erase whole branches and blocks of a network that has more of them than it needs, while it trains.

python examples/erase_supernet.py [EPOCHS]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import niwaki

torch.manual_seed(0)
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
y = torch.tensor(labels)
order = torch.randperm(len(y))
train, test = order[450:], order[:450]


class Layer(nn.Module):
    """Three candidates side by side, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.candidates = nn.ModuleList(nn.Conv2d(width, width, kernel, padding=kernel // 2) for kernel in (1, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).relu()
        for candidate in self.candidates:
            x = x + candidate(h)
        return x


layers = [Layer(16) for _ in range(3)]
model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
space = niwaki.search_space(model, x[:2], erase=True)
print(space)  # among the rest: the structures that can vanish, and what they cost
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
steps = epochs * (len(train) // 64)
schedule = niwaki.Schedule(start=steps // 10, until=steps // 2, periods=5)
method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.5), schedule, remove="structures")
for _ in range(steps):
    rows = train[torch.randint(len(train), (64,))]
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
    optimizer.step()

plan = method.plan()
print(niwaki.check(model.eval(), plan, x[:4]))
small = niwaki.cut(model, plan)
print(small)
print(f"{(small(x[test]).argmax(1) == y[test]).float().mean():.1%} of the test images")
