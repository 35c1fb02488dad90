"""Lightning: build the method in `setup`, and keep the best checkpoint only among those that can be cut.

python examples/lightning_trainer.py [EPOCHS]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import niwaki

torch.manual_seed(0)
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
train, test = torch.utils.data.random_split(data, [1347, 450])
batches = DataLoader(train, batch_size=64, shuffle=True)
steps = epochs * len(batches)


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        accuracy = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("score", accuracy if self.method.done else accuracy * 0)  # earlier weights cannot be cut without loss

    def setup(self, stage: str) -> None:
        self.to(self.trainer.strategy.root_device)
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        schedule = niwaki.Schedule(start=steps // 10, until=steps // 2, periods=5)
        space = niwaki.search_space(self.network, torch.zeros(1, 64))
        self.method = niwaki.HESSO(space, self.optimizer, niwaki.Budget(macs=0.4), schedule)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer


best = ModelCheckpoint("out/lightning", monitor="score", mode="max", enable_version_counter=False)
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[best], **quiet)
model = Digits()
trainer.fit(model, batches, DataLoader(test, batch_size=450))
model.load_state_dict(torch.load(best.best_model_path, weights_only=False)["state_dict"])
small = niwaki.cut(model.network, model.method.plan()).eval()
print(f"{best.best_model_score:.1%} of the test images with {model.method.progress.macs:.0%} of the MACs: {small}")
