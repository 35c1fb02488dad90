"""An average of the weights (EMA), the best checkpoint and early stopping, none of which may be from before pruning.

python examples/ema_and_early_stopping.py [EPOCHS]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import niwaki

torch.manual_seed(0)
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
order = torch.randperm(len(y))
train, test = order[450:], order[:450]
steps = epochs * (len(train) // 64)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
space = niwaki.search_space(model, x[:1])
schedule = niwaki.Schedule(start=steps // 10, until=steps // 3, periods=10)
method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.3), schedule)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=True)

best, waited, patience = 0.0, 0, 5
for _ in range(epochs):
    for rows in train[torch.randperm(len(train))].split(64)[: len(train) // 64]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        average.update_parameters(model)
        if method.step == schedule.until:
            average.n_averaged.zero_()  # start again: older weights were trained beside units that are gone
    with torch.no_grad():
        accuracy = (average(x[test]).argmax(1) == y[test]).float().mean().item()
    if not method.done:
        continue  # weights from before the end of the schedule cannot be cut without loss: they do not compete
    waited += 1
    if accuracy > best:
        best, waited = accuracy, 0
        kept = {name: value.clone() for name, value in average.module.state_dict().items()}
    if waited == patience:
        break

average.module.load_state_dict(kept)
plan = method.plan()
print(niwaki.check(average.module, plan, x[:4]))
small = niwaki.cut(average.module, plan).eval()
after = (small(x[test]).argmax(1) == y[test]).float().mean().item()
print(f"The best average: {best:.1%} of the test images, {after:.1%} after the cut")
assert abs(after - best) < 0.005
