"""A network that is trained already: prune it in one call, then let the small one learn from it.

python examples/resnet_pretrained.py            # drawn images and a tiny ResNet, in seconds, without a download
python examples/resnet_pretrained.py IMAGES 5   # ResNet-18; a folder with one sub-folder per class, 5 epochs
"""

import sys

import timm
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import niwaki

torch.manual_seed(0)
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 1
if len(sys.argv) > 2:
    images = torchvision.datasets.ImageFolder(sys.argv[1])
    model = timm.create_model("resnet18", pretrained=True, num_classes=len(images.classes))
    images.transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    # Its last layer is new where your classes are: train it first.
else:
    model = timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4, channels=(16, 16, 32, 32)
    )
    images = TensorDataset(torch.randn(32, 3, 32, 32), torch.randint(4, (32,)))
loader = DataLoader(images, batch_size=16, shuffle=True, drop_last=True)
model.eval()

few = [batch for batch, _ in zip(loader, range(16), strict=False)]  # a few hundred images say which units matter
pruned = niwaki.prune(
    model, few[0][0][:2], niwaki.Budget(params=0.5), batches=few, loss_fn=nn.CrossEntropyLoss(), rounds=2
)
print(pruned)  # costs, and the loss of the dense, the cut and the repaired network
small = pruned.model

optimizer = torch.optim.SGD(small.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)  # a fifth of the training's
schedule = torch.optim.lr_scheduler.OneCycleLR(
    *(optimizer, 0.02, epochs * len(loader)), pct_start=0.2, anneal_strategy="linear", cycle_momentum=False
)
distil = niwaki.distillation(model)
for _ in range(epochs):
    small.train()
    for x, y in loader:
        optimizer.zero_grad()
        (nn.functional.cross_entropy(small(x), y) + distil(small, (x, y))).backward()
        optimizer.step()
        schedule.step()

small.eval()
print(niwaki.latency({"dense": model, "small": small}, few[0][0][:1], rounds=5))
niwaki.save(small, "out/resnet")  # niwaki.load(the dense network, "out/resnet")
