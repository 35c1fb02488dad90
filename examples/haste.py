"""HASTE (arXiv 2309.17211) beside niwaki: channels that are alike for one image are merged while the network runs.

HASTE needs no data and no training, and makes no smaller network: which channels are alike is found anew for every
image, by hashing, so all parameters stay, and what it saves is multiply-accumulates. So it is no method of niwaki's. It
can follow a cut: the network is made smaller first, and the convolutions of what is left merge what they can.

python examples/haste.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import niwaki


class MergingConv2d(nn.Module):
    """A convolution that merges input channels whose hashes are equal: with a bucket B of channels,

        sum over c in B of w_c * x_c  becomes  (sum over c in B of w_c) * (mean over c in B of x_c)

    which is exact for channels that are equal. The hash of a channel is the signs of `bits` random projections of its
    values, with the mean over channels taken off (the paper hashes patches; here a patch is the whole image).
    """

    def __init__(self, conv: nn.Conv2d, bits: int, seed: int = 0) -> None:
        super().__init__()
        if conv.groups != 1:
            raise ValueError(f"{conv} has {conv.groups} groups, whose channels cannot be merged with one another.")
        self.conv, self.bits, self.seed = conv, bits, seed
        self.given = self.read = 0  # channels so far, and those that were left of them

    def buckets(self, x: Tensor) -> Tensor:
        """The bucket of each channel of one image [channels, height, width]."""
        values = x.flatten(1)
        values = values - values.mean(0)
        generator = torch.Generator().manual_seed(self.seed)
        planes = torch.randn(values.shape[1], self.bits, generator=generator)
        signs = values @ planes.to(values) > 0
        return torch.unique(signs, dim=0, return_inverse=True)[1]

    def forward(self, x: Tensor) -> Tensor:
        """[images, outputs, height, width], an image at a time: each has buckets of its own."""
        return torch.stack([self.one(image) for image in x])

    def one(self, image: Tensor) -> Tensor:
        """Merge, and convolve what is left."""
        conv, bucket = self.conv, self.buckets(image)
        number = int(bucket.max()) + 1
        self.given, self.read = self.given + len(bucket), self.read + number
        sizes = torch.bincount(bucket, minlength=number).to(image)
        merged = image.new_zeros(number, *image.shape[1:]).index_add_(0, bucket, image) / sizes[:, None, None]
        shape = (conv.out_channels, number, *conv.kernel_size)
        kernel = conv.weight.new_zeros(shape).index_add_(1, bucket, conv.weight)
        how = (conv.stride, conv.padding, conv.dilation)
        return nn.functional.conv2d(merged.unsqueeze(0), kernel, conv.bias, *how).squeeze(0)


def merging(model: nn.Sequential, bits: int) -> nn.Sequential:
    """The same network with convolutions that merge, except the one that reads the image."""
    first = next(place for place, layer in enumerate(model) if isinstance(layer, nn.Conv2d))
    merges = [isinstance(layer, nn.Conv2d) and place > first for place, layer in enumerate(model)]
    layers = (MergingConv2d(layer, bits) if one else layer for layer, one in zip(model, merges, strict=True))
    return nn.Sequential(*layers).eval()


def main() -> None:
    """Train, cut, merge."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
    order = torch.randperm(len(y))
    train, test = order[450:], order[:450]
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    space, steps = niwaki.search_space(model, x[:1]), 8 * (len(train) // 64)
    method = niwaki.HESSO(
        space, optimizer, niwaki.Budget(macs=0.6), niwaki.Schedule(start=steps // 10, until=steps // 2)
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
    with torch.no_grad():
        print(f"cut: {(small(x[test]).argmax(1) == y[test]).float().mean():.1%} of the test images")
        for bits in (16, 8, 6, 4):
            net = merging(small, bits)
            accuracy = (net(x[test]).argmax(1) == y[test]).float().mean()
            layers = [layer for layer in net if isinstance(layer, MergingConv2d)]
            left = sum(layer.read for layer in layers) / sum(layer.given for layer in layers)
            print(f"merged by {bits} bits: {accuracy:.1%}, with {left:.1%} of the channels that the convolution reads")


if __name__ == "__main__":
    main()
