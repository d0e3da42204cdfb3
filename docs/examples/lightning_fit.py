"""Train a small classifier with PyTorch Lightning: python lightning_fit.py ROOT FOLDER [EPOCHS]."""

import sys

import lightning
import timm
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics.classification import MultilabelAveragePrecision

from reben_cloud.torch import ModelInput
from reben_cloud.training.datamodule import RebenDataModule


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.inputs = ModelInput(bands="S1_10m_20m", augment="flip")  # works on the device, on raw batches
        self.model = timm.create_model("resnet18", in_chans=12, num_classes=19)
        self.score = MultilabelAveragePrecision(19, thresholds=100)

    def training_step(self, batch, _):
        loss = binary_cross_entropy_with_logits(self.model(self.inputs(batch)), batch["labels"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, _):
        valid = batch["valid"]  # on several processes the last batch is padded
        self.score.update(self.model(self.inputs(batch))[valid].sigmoid(), batch["labels"][valid].int())

    def on_validation_epoch_end(self):
        self.log("validation_ap", self.score.compute())
        self.score.reset()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


root, folder, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 10
data = RebenDataModule(root, modalities=("s2", "s1"), batch_size=16, seed=0)
trainer = lightning.Trainer(
    max_epochs=epochs, default_root_dir=folder, enable_progress_bar=False, num_sanity_val_steps=0
)
trainer.fit(Classifier(), data)
print(f"validation AP {float(trainer.callback_metrics['validation_ap']):.3f}")
