"""What loading costs a training step: streaming from local shards beside the same batch kept in memory.

    python tests/benchmarks/bench_train.py [--patches 512] [--architecture resnet18] [--batch-size 64]
        [--precision bf16] [--steps 30]

Both ways take the raw uint16 batch to the device, turn it into input there and go on to the gradient and
the optimizer; the difference is the loader. On a GPU the clock is the wall's, read after synchronising.
Prints one line of JSON. The ways take turns, so that a machine that gets slower slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator

import torch

import reben_cloud as rc
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.torch import Batch, StreamLoader
from reben_cloud.training.compute import compute_context
from reben_cloud.training.config import TrainConfig
from reben_cloud.training.feed import modalities_for
from reben_cloud.training.learner import Learner
from reben_cloud.training.objective import Objective
from reben_cloud.training.train import model_spec


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="a root; otherwise a synthetic one is built")
    parser.add_argument("--patches", type=int, default=512)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments, arguments.root or make_root(folder, arguments.patches))))


def make_root(folder: str, num_patches: int) -> str:
    """Build a synthetic root of S1 and S2."""
    source, metadata = open_source(f"synthetic:{num_patches}")
    build(make_plan(source, metadata, open_store(f"{folder}/root"), modalities=("s2", "s1")))
    return f"{folder}/root"


def measure(arguments: argparse.Namespace, root: str) -> dict[str, object]:
    """Median step times of both ways, and the share of the time that the loader is waited for."""
    config = TrainConfig(architecture=arguments.architecture, precision=arguments.precision)
    spec = model_spec(config, REBEN)
    with compute_context(config.precision) as compute:
        learner = Learner(config, spec, Objective(config, spec, REBEN, None), compute, num_steps=1_000)
        loader = StreamLoader(
            rc.open(root).search(),
            modalities=modalities_for(spec, REBEN),
            batch_size=arguments.batch_size,
            drop_last=True,
        )
        resident = {name: tensor.clone() for name, tensor in next(iter(loader)).items()}
        if compute.device.type == "cuda":
            resident = {name: tensor.pin_memory() for name, tensor in resident.items()}

        def timed(batches: Iterator[Batch]) -> float:
            start = time.perf_counter()
            for _ in range(arguments.steps):
                learner.step(next(batches), number=0, epoch=0)
            if compute.device.type == "cuda":
                torch.cuda.synchronize()
            return (time.perf_counter() - start) / arguments.steps

        streamed, kept = endless(loader), iter(lambda: resident, None)
        timed(streamed), timed(kept)  # first calls: files mapped, kernels chosen, shards verified
        before = loader.stats()
        rounds = [(timed(streamed), timed(kept)) for _ in range(arguments.rounds)]
        waited = loader.stats().wait_s - before.wait_s
    stream_s, resident_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "device": torch.cuda.get_device_name() if compute.device.type == "cuda" else "cpu",
        "architecture": arguments.architecture,
        "batch_size": arguments.batch_size,
        "precision": arguments.precision,
        "streaming_step_s": round(stream_s, 5),
        "resident_step_s": round(resident_s, 5),
        "ratio": round(stream_s / resident_s, 4),
        "wait_share": round(waited / sum(s for s, _ in rounds) / arguments.steps, 5),
        "samples_per_s": round(arguments.batch_size / stream_s, 1),
    }


def endless(loader: StreamLoader) -> Iterator[Batch]:
    """The loader's epochs, one after the other."""
    while True:
        yield from loader


if __name__ == "__main__":
    main()
