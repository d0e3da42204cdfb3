"""Train a small classifier in plain PyTorch: python plain_loop.py ROOT [STEPS]."""

import sys

import timm
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import reben_cloud as rc
from reben_cloud.torch import ModelInput, StreamLoader

root, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1000
device = "cuda" if torch.cuda.is_available() else "cpu"

selection = rc.open(root).search(split="train", recommended=True)
loader = StreamLoader(selection, modalities=("s2", "s1"), batch_size=16, seed=0, drop_last=True)
inputs = ModelInput(bands="S1_10m_20m", augment="flip").to(device)
model = timm.create_model("resnet18", in_chans=12, num_classes=19).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

step = 0
while step < steps:
    for raw in loader:  # one epoch; the next loop is the next epoch, in another order
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in raw.items()}
        loss = binary_cross_entropy_with_logits(model(inputs(batch)), batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step == steps:
            break

stats = loader.stats()
print(
    f"{step} steps, loss {loss.item():.3f}, {stats.samples_per_s:.0f} samples/s, waiting {stats.wait_share:.1%}"
)
