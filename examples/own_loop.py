"""niwaki in a training loop of one's own: digits, a small network, a third of its multiply-accumulates.

python examples/own_loop.py [EPOCHS]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import niwaki

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
y = torch.tensor(labels)
order = torch.randperm(len(y))
train, test = order[450:], order[:450]


def network() -> nn.Module:
    """A convolutional network for 8x8 images."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


model = network()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

space = niwaki.search_space(model, x[:1])
print(space)
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
steps = epochs * (len(train) // 64)
method = niwaki.HESSO(
    space, optimizer, niwaki.Budget(macs=0.33), niwaki.Schedule(start=steps // 10, until=steps // 2, periods=10)
)

for _ in range(steps):
    rows = train[torch.randint(len(train), (64,))]
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
    optimizer.step()

model.eval()
plan = method.plan()
small = niwaki.cut(model, plan)
print(niwaki.check(model, plan, x[:4]))
for name, net in (("before the cut", model), ("after the cut", small)):
    accuracy = (net(x[test]).argmax(1) == y[test]).float().mean().item()
    print(f"{name}: {accuracy:.1%} of the test images, {sum(p.numel() for p in net.parameters()):,} parameters")
print(f"MACs: {space.cost(plan).macs:,} of {space.cost().macs:,}")

niwaki.save(small, "out/own_loop")
again = niwaki.load(network().eval(), "out/own_loop")
assert torch.equal(again(x[test]), small(x[test]))
