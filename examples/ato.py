"""Auto-Train-Once: a controller learns on held-out images which units the network needs, while the network trains.

python examples/ato.py [EPOCHS]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import niwaki

torch.manual_seed(0)
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
y = torch.tensor(labels)
order = torch.randperm(len(y))
train, held_out, test = order[550:], order[450:550], order[:450]  # the controller's images are not trained on
steps = epochs * (len(train) // 64)

model = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
method = niwaki.ATO(
    niwaki.search_space(model, x[:1]),
    optimizer,
    niwaki.Budget(macs=0.4),
    niwaki.Schedule(start=steps // 10, until=steps * 2 // 3),
    loss_fn=nn.CrossEntropyLoss(),
    batches=DataLoader(TensorDataset(x[held_out], y[held_out]), batch_size=50, shuffle=True),
    generator="gru",  # the paper's; "transformer", "shared" and "independent" are the others
)
for step in range(steps):
    rows = train[torch.randint(len(train), (64,))]
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
    optimizer.step()
    if step % max(steps // 5, 1) == 0:
        print(method)

plan = method.plan()
print(niwaki.check(model.eval(), plan, x[:4]))
small = niwaki.cut(model, plan)
accuracy = (small(x[test]).argmax(1) == y[test]).float().mean().item()
print(f"{accuracy:.1%} of the test images with {method.progress.macs:.0%} of the MACs")
