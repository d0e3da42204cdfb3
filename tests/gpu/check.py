"""Does the loader do on a CUDA device what it says? Under five minutes on one GPU; what must hold, and figures.

    pip install 'reben-cloud[train]'
    python -m tests.gpu.check [--device cuda] [--root DIR_OR_URL] [--remote s3://BUCKET/ROOT] [--only NAME ...]
        [--json FILE]

Each line is a check with its figures: `ok`, `FAILED`, or `-` for a figure without a bound. The exit status is 1 if one
failed. Without `--root`, a synthetic one is built; without `--remote`, a web server on this machine stands for S3, and
its process wants cores of its own. ``--device cpu --small`` runs all of it in a reduced form, without the bounds that
only a device can be measured by.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reben_cloud as rc
from reben_cloud.bigearthnet.bands import BAND_SETS
from reben_cloud.build import build, make_plan
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.torch import Batch, ModelInput, StreamLoader, unpack
from reben_cloud.training.compute import Compute
from reben_cloud.training.evaluate import evaluate
from reben_cloud.training.models import ModelSpec, create_model
from tests.webserver import serve

LAYOUTS = ("arrays", "records")
BANDS = "S1_10m_20m"


@dataclass(kw_only=True)
class Check:
    """What is run, where, and what came of it."""

    device: torch.device
    root: str
    remote: str
    batch_size: int
    steps: int
    """Steps of a timed loop."""
    rounds: int
    """Timed loops of each kind, in turn."""
    num_evaluated: int
    """Patches that are predicted on both devices."""
    architecture: str
    found: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def say(self, name: str, is_right: bool | None = None, **figures: Any) -> None:
        """Note a result; None for a figure without a bound."""
        self.found.append({"check": name, "ok": is_right, **figures})
        verdict = {True: "ok", False: "FAILED", None: "-"}[is_right]
        print(f"{name:28s} {verdict:6s} {', '.join(f'{k} {v}' for k, v in figures.items())}", flush=True)

    def loader(self, url: str | None = None, **options: Any) -> StreamLoader:
        selection = rc.open(url or self.root).search()
        defaults = {"batch_size": self.batch_size, "modalities": ("s2", "s1"), "drop_last": True, "seed": 1}
        return StreamLoader(selection, **{**defaults, **options})

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, step: Callable[[], object], count: int | None = None) -> float:
        """Seconds of a step, after two that are not counted."""
        count = count or self.steps
        step(), step()
        self.wait()
        begin = time.perf_counter()
        for _ in range(count):
            step()
        self.wait()
        return (time.perf_counter() - begin) / count

    def there(self, batch: Mapping[str, Tensor]) -> Batch:
        return {name: values.to(self.device) for name, values in batch.items()}


def endless(loader: StreamLoader) -> Iterator[Batch]:
    """The loader's epochs, one after the other."""
    while True:
        yield from loader


def nbytes(batch: Mapping[str, Tensor]) -> int:
    return sum(values.nbytes for values in batch.values())


# -- the checks ----------------------------------------------------------------------------------------


def images(check: Check) -> None:
    """Images on the device are those of the CPU, for every set of bands, either layout, compiled as well."""
    for layout in LAYOUTS:
        raw = next(iter(check.loader(batch_size=37, layout=layout, pin_memory=False)))
        moved = check.there(raw)
        for bands in BAND_SETS:
            for size in (120, 128):
                module = ModelInput(bands, size=size)
                expected = module(raw)
                worst = float((module.to(check.device)(moved).cpu() - expected).abs().max())
                if worst:
                    check.say("images", False, bands=bands, size=size, layout=layout, worst=worst)
        module = ModelInput("ALL", dtype=torch.bfloat16, memory_format=torch.channels_last)
        image = module.to(check.device)(moved).cpu()
        expected = ModelInput("ALL")(raw)
        check.say("images", torch.equal(image, expected.to(torch.bfloat16)), layout=layout)
        backend = "inductor" if check.is_cuda else "aot_eager"
        compiled = torch.compile(ModelInput("ALL").to(check.device), backend=backend, fullgraph=True)
        worst = float((compiled(moved).cpu() - expected).abs().max())
        # A compiler may multiply and add in one rounding.
        check.say("images, compiled", worst <= 1e-5, layout=layout, worst=worst)
    if check.is_cuda:
        _waits_nowhere(check, moved)


def _waits_nowhere(check: Check, moved: Batch) -> None:
    module = ModelInput("ALL", augment="flip").to(check.device).train()
    module(moved)
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(moved)
        check.say("images, no wait", True)
    except RuntimeError as error:
        check.say("images, no wait", False, error=str(error).splitlines()[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def races(check: Check) -> None:
    """What a slow device and a hasty consumer get is what was read: sums of every sample, exact in float64."""
    truth = {}
    for batch in check.loader(drop_last=False, pin_memory=False):
        sums = batch["s2_10m"].double().sum((1, 2, 3)) + batch["s1"].double().sum((1, 2, 3))
        truth.update(zip(batch["index"].tolist(), sums.tolist(), strict=True))
    for layout in LAYOUTS:
        kept = []
        for _ in range(2):
            for batch in check.loader(drop_last=False, device=check.device, layout=layout, batch_size=64):
                if check.is_cuda:
                    torch.cuda._sleep(20_000_000)  # cycles, about 10 ms: the loader runs ahead
                arrays = unpack(batch)
                sums = arrays["s2_10m"].double().sum((1, 2, 3)) + arrays["s1"].double().sum((1, 2, 3))
                kept.append((batch["index"], sums))
                del batch, arrays
        check.wait()
        wrong = sum(
            abs(got - truth[i]) > 1e-9 * abs(truth[i])
            for index, sums in kept
            for i, got in zip(index.tolist(), sums.tolist(), strict=True)
        )
        check.say(
            "races", not wrong and sum(len(i) for i, _ in kept) == 2 * len(truth), layout=layout, wrong=wrong
        )


def copies(check: Check) -> None:
    """How fast batches come to the device, beside copies of one batch from pinned memory and nothing else."""
    for layout in LAYOUTS:
        one = {n: v.clone() for n, v in next(iter(check.loader(layout=layout, pin_memory=False))).items()}
        if check.is_cuda:
            one = {name: values.pin_memory() for name, values in one.items()}
        batches = endless(check.loader(layout=layout, device=check.device, gather_threads=6, prefetch=64))

        def bare(one: Batch = one) -> object:
            return {name: values.to(check.device, non_blocking=True) for name, values in one.items()}

        rounds = [
            (check.seconds(bare), check.seconds(lambda b=batches: next(b))) for _ in range(check.rounds)
        ]
        bare_s, ours_s = (statistics.median(column) for column in zip(*rounds, strict=True))
        figures = {
            "GB_s": round(nbytes(one) / ours_s / 1e9, 2),
            "bare_GB_s": round(nbytes(one) / bare_s / 1e9, 2),
        }
        share = bare_s / ours_s
        check.say(
            "copies",
            share >= 0.95 if check.is_cuda else None,
            layout=layout,
            share=round(share, 3),
            **figures,
        )


def steps(check: Check) -> None:
    """A step of training fed by the loader beside one on a batch that stays on the device; local, then remote."""
    torch.set_float32_matmul_precision("high")
    spec = ModelSpec(architecture=check.architecture, bands=tuple(BAND_SETS[BANDS]))
    model = create_model(spec).to(check.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    dtype = torch.bfloat16 if check.is_cuda else torch.float32
    transform = ModelInput(BANDS, augment="flip", dtype=dtype, memory_format=torch.channels_last).to(
        check.device
    )

    def step(batch: Batch) -> None:
        with torch.autocast(check.device.type, dtype=torch.bfloat16, enabled=check.is_cuda):
            logits = model(batch["image"])
        nn.functional.binary_cross_entropy_with_logits(logits.float(), batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for name, url, bound in (("steps", check.root, 1.03), ("steps, remote", check.remote, 1 / 0.95)):
        loader = check.loader(
            url, layout="records", device=check.device, transform=transform, fetch_threads=16
        )
        batches = endless(loader)
        resident = {key: values.clone() for key, values in next(batches).items()}
        rounds = [
            (check.seconds(lambda r=resident: step(r)), check.seconds(lambda b=batches: step(next(b))))
            for _ in range(check.rounds)
        ]
        resident_s, fed_s = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(fed / kept for kept, fed in rounds)
        check.say(
            name,
            ratio <= bound if check.is_cuda else None,
            ratio=round(ratio, 4),
            utilisation=round(1 / ratio, 4),
            fed_ms=round(fed_s * 1e3, 2),
            resident_ms=round(resident_s * 1e3, 2),
            samples_s=round(check.batch_size / fed_s),
        )


def evaluation(check: Check) -> None:
    """Predictions on the device are those of the CPU, to rounding."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    spec = ModelSpec(architecture="resnet18", bands=tuple(BAND_SETS[BANDS]))
    model = create_model(spec)
    some = rc.open(check.root).search(split="test", sample=check.num_evaluated)
    here = evaluate(model, spec, some, Compute(device=torch.device("cpu")), batch_size=64)
    there = evaluate(model.to(check.device), spec, some, Compute(device=check.device), batch_size=64)
    worst = float((here.probabilities - there.probabilities).abs().max())
    check.say("evaluation", worst < 1e-4 and torch.equal(here.labels, there.labels), worst=worst)


CHECKS: dict[str, Callable[[Check], None]] = {
    "images": images,
    "races": races,
    "copies": copies,
    "steps": steps,
    "evaluation": evaluation,
}


# -- where the data is ---------------------------------------------------------------------------------


def build_root(folder: Path, patches: int) -> str:
    source, official = open_source(f"synthetic:{patches}")
    build(make_plan(source, official, open_store(folder / "root")), workers=1 if patches < 1000 else 4)
    return str(folder / "root")


def _serve(folder: str, pipe: Connection) -> None:
    with serve(Path(folder)) as url:
        pipe.send(url)
        pipe.recv()


def main() -> int:
    """Run the checks; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--root", help="A root; built if it is not given.")
    parser.add_argument("--remote", help="The same root on S3.")
    parser.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--small", action="store_true", help="Few samples, a small model, short loops.")
    parser.add_argument("--json", type=Path, help="File for the results.")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device; --device cpu --small runs what a CPU can")
    patches, batch_size, num_steps, architecture = (4096, 256, 30, "resnet50")
    if arguments.small:
        patches, batch_size, num_steps, architecture = (120, 8, 1, "resnet18")
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.root or build_root(Path(folder), patches)
        pipe, other = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(target=_serve, args=(root, other), daemon=True)
        if not arguments.remote:
            server.start()
        check = Check(
            device=device,
            root=root,
            remote=arguments.remote or pipe.recv(),
            batch_size=batch_size,
            steps=num_steps,
            rounds=1 if arguments.small else 3,
            num_evaluated=16 if arguments.small else 256,
            architecture=architecture,
        )
        name = torch.cuda.get_device_name(device) if check.is_cuda else "cpu"
        print(f"{name}, torch {torch.__version__}, batches of {batch_size}")
        for one in arguments.only:
            CHECKS[one](check)
        if not arguments.remote:
            pipe.send(None)
            server.join()
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": name, "checks": check.found}, indent=1))
    return 1 if any(one["ok"] is False for one in check.found) else 0


if __name__ == "__main__":
    sys.exit(main())
