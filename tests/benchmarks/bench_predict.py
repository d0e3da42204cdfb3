"""What `predict` costs beside a loop that only moves the data, and beside one that asks the model and keeps nothing.

    python tests/benchmarks/bench_predict.py [--patches 512] [--architecture resnet18] [--what probabilities]
        [--batch-size 64] [--precision fp32] [--rounds 3]

All three read the same patches of a local root to the device. Prints one line of JSON: samples per second of the wall's
clock and milliseconds of this process's CPU per sample, medians of rounds that take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import reben_cloud as rc
from reben_cloud.bigearthnet.bands import BAND_SETS
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.torch import StreamLoader
from reben_cloud.training.compute import compute_context
from reben_cloud.training.feed import input_modalities, model_input
from reben_cloud.training.models import ModelSpec, create_model, load_pretrained, save_model


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="a root; otherwise a synthetic one is built")
    parser.add_argument("--patches", type=int, default=512)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--what", default="probabilities", choices=("probabilities", "embedding", "mask"))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.root
        if root is None:
            root = f"{folder}/root"
            source, metadata = open_source(f"synthetic:{arguments.patches}")
            build(make_plan(source, metadata, open_store(root), modalities=("s2", "s1")))
        print(json.dumps(measure(arguments, root, Path(folder))))


def measure(arguments: argparse.Namespace, root: str, folder: Path) -> dict[str, object]:
    """Rates and CPU of the three ways."""
    spec = ModelSpec(
        architecture=arguments.architecture,
        bands=BAND_SETS["S1_10m_20m"],
        task="map" if arguments.what == "mask" else "labels",
    )
    save_model(folder / "model", create_model(spec), spec)
    selection = rc.open(root).search()

    def loop(*, ask: bool) -> None:
        with compute_context(arguments.precision) as compute, torch.inference_mode():
            model, _ = load_pretrained(folder / "model")
            model.to(compute.device)
            inputs = model_input(spec, REBEN).to(compute.device)
            for batch in StreamLoader(
                selection, modalities=input_modalities(spec, REBEN), batch_size=arguments.batch_size
            ):
                raw = compute.to_device(batch)
                if ask:
                    with compute.autocast():
                        model(inputs(raw)).float().cpu()
            if compute.device.type == "cuda":
                torch.cuda.synchronize()

    rounds: dict[str, list[tuple[float, float]]] = {"move": [], "ask": [], "predict": []}
    for number in range(arguments.rounds):
        ways: dict[str, Callable[[], object]] = {
            "move": lambda: loop(ask=False),
            "ask": lambda: loop(ask=True),
            "predict": lambda n=number: rc.predict(
                folder / "model",
                selection,
                folder / f"layer{n}",
                what=arguments.what,
                batch_size=arguments.batch_size,
                precision=arguments.precision,
            ),
        }
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            rounds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    count = len(selection)
    found: dict[str, object] = {"patches": count, "architecture": spec.architecture, "what": arguments.what}
    for name, times in rounds.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        found[name] = {"samples_per_s": round(count / wall, 1), "cpu_ms": round(1e3 * cpu / count, 3)}
    return found


if __name__ == "__main__":
    main()
