"""Ultralytics' YOLO: prune a detector while its own trainer trains it, on shapes that are drawn on the spot.

pip install -r examples/requirements-yolo.txt   # AGPL-3.0, so it is in none of the extras of niwaki
python examples/yolo.py [EPOCHS]
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

import niwaki

torch.manual_seed(0)
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
folder = Path("out/yolo").resolve()
for number in range(32):  # one square or disc in each picture
    kind, (left, top), size = number % 2, torch.randint(4, 28, (2,)).tolist(), 24
    image = Image.new("RGB", (64, 64), (30, 30, 30))
    draw = ImageDraw.Draw(image)
    (draw.ellipse if kind else draw.rectangle)((left, top, left + size, top + size), fill=(220, 180, 40))
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    image.save(folder / f"images/{number}.png")
    line = [kind, (left + size / 2) / 64, (top + size / 2) / 64, size / 64, size / 64]
    (folder / f"labels/{number}.txt").write_text(" ".join(map(str, line)) + "\n")
(folder / "shapes.yaml").write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [square, disc]\n")


class Pruning(DetectionTrainer):
    """Attaches to the optimizer that Ultralytics builds."""

    def build_optimizer(self, model: torch.nn.Module, *args: object, **more: object) -> torch.optim.Optimizer:
        optimizer = super().build_optimizer(model, *args, **more)
        steps = epochs * len(self.train_loader)
        schedule = niwaki.Schedule(start=1, until=max(steps // 2, 4), periods=3)
        space = niwaki.search_space(model, torch.zeros(2, 3, 64, 64), ignored=["*.dfl.*"])
        type(self).method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.6), schedule)
        type(self).network = model  # not `trainer.ema`, an average of weights from before pruning too
        return optimizer

    def validate(self) -> tuple[dict[str, float], float]:
        return {}, 0.0  # a few drawn shapes say nothing; leave this out to measure the mAP


settings = {"imgsz": 64, "batch": 8, "workers": 0, "device": "cpu", "plots": False, "val": False, "amp": False}
settings |= {"nbs": 8, "project": str(folder / "runs"), "exist_ok": True, "verbose": False, "warmup_epochs": 0}
YOLO("yolov8n.yaml").train(trainer=Pruning, data=str(folder / "shapes.yaml"), epochs=epochs, save=False, **settings)
print(Pruning.method)
plan = Pruning.method.plan()
print(niwaki.check(Pruning.network.eval(), plan, torch.rand(1, 3, 64, 64)))
small = niwaki.cut(Pruning.network, plan)  # YOLO's own class: small.predict, .fuse, its exports
print(f"{sum(p.numel() for p in small.parameters()):,} parameters left")
