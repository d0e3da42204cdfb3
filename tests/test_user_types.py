"""``mypy --strict`` of a user's script: it accepts the documented uses and refuses what no signature has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
pytest.importorskip("torch")

SCRIPT = """\
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np

import reben_cloud as rc
from reben_cloud.stream import RawLoader
from reben_cloud.torch import StreamDataset, StreamLoader
from reben_cloud.training.config import Subset, TrainConfig
from reben_cloud.training.evaluate import Evaluation, evaluate_folder
from reben_cloud.training.train import train

ds = rc.open("s3://bucket/root", {"endpoint": "http://localhost:9000"})
sel = ds.search(bbox=(9.5, 46.3, 17.2, 49.1), datetime="2017-06-01/2017-08-31", recommended=True)
sel = ds.search(bbox="9,46,17,49", labels=["Pastures"], split="train", country={"Finland"}, limit=5)
sel = ds.search(datetime=(date(2017, 6, 1), None), s1_datetime=np.datetime64("2017-06"), sortby="-datetime")
sel = ds.search(intersects={"type": "Point", "coordinates": [13, 47]}, cql2={"op": "isNull", "args": []})
sel = ds.search(intersects="POINT (13 47)", ids=iter(["a"]), missing_ok=True, snow=False, cloud=None)
sel = ds.search(ids=Path("ids.csv"), ids_order=True, sample=100, sample_seed=1)
sel = ds.search(share=0.1, sample_seed=2).dataset.search(share=(0.5, 1)).dataset.search(share="0.5/1")
sel = ds.search(sample=100, balance="label", min_distance_m=2500.5)
sel = ds.select(rc.Query(split="train", sample=10, balance="country"))
query: rc.Query = sel.query
loader = StreamLoader(sel, modalities=("s2", "s1"), batch_size=32, seed=0, cache_dir="cache")
shapes = [batch["s2_10m"].shape for batch in loader]
StreamDataset(ds.search(split="test"), batch_size=8, lanes=4)
RawLoader(sel, form="zarr")
report = sel.export_lmdb("out", modalities=["s2"], update=True)
num: int = report.num_patches + sel.export_safetensors("parts", patches_per_file=10).num_patches
ids: list[str] = sel.patch_ids
train(TrainConfig(train=Subset(split="train", country="Finland")), ds, "run", cache_dir="cache")
found: Evaluation = evaluate_folder("run/best", sel)[2]


def wrong() -> Iterator[object]:
    yield ds.search(bboxx=(1, 2, 3, 4))  # refused: call-arg
    yield ds.search((1, 2, 3, 4))  # refused: call-arg
    yield ds.search(limit="5")  # refused: arg-type
    yield ds.search(snow="no")  # refused: arg-type
    yield ds.search(labels=5)  # refused: arg-type
    yield ds.search(datetime=2017)  # refused: arg-type
    yield ds.search(intersects=5)  # refused: arg-type
    yield ds.search(sample=1.5)  # refused: arg-type
    yield ds.search(sample=5, balance="labels")  # refused: arg-type
    yield ds.search(sample=5, min_distance_m="5 km")  # refused: arg-type
    yield ds.search(sample=5, min_distance=5)  # refused: call-arg
    yield rc.Query(splitt="train")  # refused: call-arg
    yield ds.select({"split": "train"})  # refused: arg-type
    yield StreamLoader("text")  # refused: arg-type
    yield StreamLoader(ds)  # refused: arg-type
    yield StreamLoader(sel, batchsize=5)  # refused: call-arg
    yield StreamDataset("text")  # refused: arg-type
    yield StreamDataset(sel, cache="x")  # refused: call-arg
    yield RawLoader(ds)  # refused: arg-type
    yield RawLoader(sel, form="tar")  # refused: arg-type
    yield sel.export_lmdb("out", modality=["s2"])  # refused: call-arg
    yield sel.export_safetensors("out", patches_per_file="9")  # refused: arg-type
    yield rc.open("root", endpoint="x")  # refused: call-arg
    yield rc.open(5)  # refused: arg-type
    yield train(TrainConfig(), "root", "run")  # refused: arg-type
    yield train(TrainConfig(), ds, "run", cachedir="x")  # refused: call-arg
    yield Subset(bboxx=(1, 2, 3, 4))  # refused: call-arg
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mypy_accepts_what_is_documented_and_refuses_the_rest(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parent.parent
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--config-file=",
        "--no-pretty",
    ]

    result = subprocess.run(
        [*command, f"--cache-dir={tmp_path}/cache", str(script)],
        cwd=root, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "MYPYPATH": str(root)},
    )  # fmt: skip

    errors = re.findall(r"script\.py:(\d+): error: .*\[([a-z-]+)\]$", result.stdout, re.MULTILINE)
    refused = [
        (str(number), line.rpartition("refused: ")[2])
        for number, line in enumerate(SCRIPT.splitlines(), 1)
        if "# refused: " in line
    ]
    assert errors == refused, result.stdout + result.stderr
