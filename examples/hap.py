"""Hessian-Aware Pruning: choose by the curvature of the loss, and leave 1 x 1 implants where much would be lost.

python examples/hap.py [EPOCHS]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import niwaki
from niwaki import implants

torch.manual_seed(0)
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
y = torch.tensor(labels)
order = torch.randperm(len(y))
train, test = order[450:], order[:450]


def trained(network: nn.Module, epochs: int) -> float:
    """Train, and return the accuracy on the test images."""
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=2e-3)
    for _ in range(epochs * (len(train) // 64)):
        rows = train[torch.randint(len(train), (64,))]
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
    return (network.eval()(x[test]).argmax(1) == y[test]).float().mean().item()


model = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
)
print(f"dense: {trained(model, epochs):.1%}")

space = niwaki.search_space(model, x[:1])
batches = [(x[rows], y[rows]) for rows in train[:256].split(128)]
scores = niwaki.score(space, "relative_hessian_trace", batches, nn.CrossEntropyLoss(), probes=10)
paper = implants.hap(space, scores, removed=0.5, implants=0.1)  # one threshold for all layers
macs = space.cost(paper).macs / space.cost().macs
by_value = implants.choose(space, scores, niwaki.Budget(macs=macs))  # keep, implant or remove, by loss per saved cost
for name, plan in (("the paper's choice", paper), ("at the same cost, by value", by_value)):
    start = implants.fitted(model, plan, [inputs for inputs, _ in batches])  # implants as near to whole units as can be
    small = niwaki.cut(start, plan).eval()
    before = (small(x[test]).argmax(1) == y[test]).float().mean().item()
    after = trained(small, epochs // 3)
    print(f"{name}: {macs:.0%} of the MACs, {before:.1%} after the cut, {after:.1%} trained on")
