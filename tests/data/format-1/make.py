"""Makes the files beside it; run once, with the code of commit 1299d3c. Kept to say what is in them.

    python make.py FOLDER

Later versions read these files and never write them again: a root, an export of a part of it, and
what loaders of that version delivered from the root, the export, and the bare LMDB in the export.
"""

import json
import lzma
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

import reben_cloud as rc
from reben_cloud.bigearthnet import labels
from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.build import build, make_plan
from reben_cloud.root.patch import MAP_TENSOR, TENSORS, Patch, encode_payload
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from tests import official

NUM_PATCHES = 40
BATCH_SIZE = 4


@dataclass(frozen=True)
class StripedSource:
    """Patches whose rows of pixels are constant: they compress to nothing, and no two are alike."""

    kind = "synthetic patches"

    def describe(self):
        return "striped patches"

    def names(self):
        return dict.fromkeys(TENSORS)

    def read(self, info, modalities):
        return Patch(
            info=info,
            payloads={
                m: encode_payload(m, {name: tensor(info, name) for name in TENSORS[m]}) for m in modalities
            },
        )


def tensor(info, name):
    """One tensor of a patch; rows that are constant, and differ by patch, band and row."""
    if name == MAP_TENSOR:
        codes = np.array([labels.representative_code(label) for label in info.labels], np.uint16)
        return np.repeat(codes[np.arange(120) * len(codes) // 120], 120).reshape(120, 120)
    band = BANDS[name]
    number = int(info.patch_id[-5:-3]) * 100 + int(info.patch_id[-2:])
    rows = np.arange(band.size_px) + 17 * list(BANDS).index(name)
    if band.dtype == "float32":
        values = (-8.0 - (6.0 if name == "VH" else 0.0) - (number % 97) / 64 - rows / 256).astype(np.float32)
    else:
        values = (1 + number % 1999 + 8 * rows).astype(np.uint16)
    return np.repeat(values, band.size_px).reshape(band.size_px, band.size_px)


def delivered(selection, **options):
    """The patches of two epochs, a state in the middle of the second, and what is left of it."""
    loader = RawLoader(selection, batch_size=BATCH_SIZE, **options)
    ids = np.array(selection.patch_ids)
    first = [ids[batch["index"]].tolist() for batch in loader]
    epoch, state = [], None
    for number, batch in enumerate(loader):
        epoch.append(ids[batch["index"]].tolist())
        if number == 1:
            state = loader.state_dict()
    return {
        "options": options,
        "epochs": [flat(first), flat(epoch)],
        "state": state,
        "after": 2 * BATCH_SIZE,
    }


def flat(batches):
    return [patch_id for batch in batches for patch_id in batch]


def pack(folder, file):
    with lzma.open(file, "wb", preset=9) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != "lock.mdb" and "leases" not in path.parts:
                tar.add(path, path.relative_to(folder).as_posix(), filter=plain)


def plain(info):
    info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode = 0, 0, 0, "", "", 0o644
    return info


def main(out):
    with tempfile.TemporaryDirectory() as scratch:
        root, export = Path(scratch, "root"), Path(scratch, "export")
        table = official.table_of(NUM_PATCHES)
        build(make_plan(StripedSource(), table, open_store(root), options=PlacementOptions(shard_samples=8)))
        dataset = rc.open(root)
        chosen = dataset.search(split=["train", "test"])
        chosen.export_lmdb(export)
        bare = Path(scratch, "bare")
        bare.mkdir()
        for file in export.iterdir():
            if file.name not in ("export.json", "patches.parquet", "lock.mdb"):
                (bare / file.name).write_bytes(file.read_bytes())
        said = {
            "made_with": {"commit": "1299d3c", "pyarrow": pa.__version__},
            "fingerprint": dataset.manifest["fingerprint"],
            "root": [
                delivered(dataset.search(), lanes=4, seed=7),
                delivered(
                    dataset.search(recommended=True, split="train"), lanes=2, seed=1, modalities=["s2"]
                ),
            ],
            "export": [delivered(rc.open(export).search(), lanes=4, seed=7)],
            "bare": [delivered(rc.open(bare).search(), lanes=4, seed=7)],
            "bare_fingerprint": rc.open(bare).manifest["fingerprint"],
            "search": {
                "first": dataset.search().patch_ids[:5],
                "forest": dataset.search(labels=["Mixed forest"]).patch_ids,
            },
        }
        (out / "said.json").write_text(json.dumps(said, indent=1) + "\n")
        pack(root, out / "root.tar.xz")
        pack(export, out / "export.tar.xz")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
