"""How fast is the small network, and what goes to production: latency budgets, widths in multiples of 8, and ONNX.

python examples/onnx_latency.py [ROUNDS]
"""

import sys

import torch
from torch import nn

import niwaki

torch.manual_seed(0)
rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 50
model = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
    *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
).eval()  # yours: trained
x = torch.randn(4, 3, 24, 24)

space = niwaki.search_space(model, x)
scores = niwaki.score(space, "magnitude")

# Kernels of most libraries like multiples of 8: the same budget, rounded, is often faster.
plan = niwaki.choose(space, scores, niwaki.Budget(macs=0.4, round_to=8))
small = niwaki.cut(model, plan)
print(f"MACs: {space.cost(plan).macs / space.cost().macs:.0%}. They are not milliseconds, so measure:")
print(niwaki.latency({"dense": model, "small": small}, x, rounds=rounds))

# Both outputs, of the program and of the file, are compared with the network's, also for another batch size.
program = niwaki.export(small, x, "small.onnx", dynamic={"input": (0,)})
print("small.onnx is written, and computes the same.")
assert torch.allclose(program.module()(x), small(x), atol=1e-4)
