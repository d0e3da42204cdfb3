"""What `bench_loader` measures with: the same samples in every format, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 64
SHARD = 256


# -- the data, once in every format ------------------------------------------------------------------


def make_root(folder: Path, samples: int, metadata: Sequence[Path] = ()) -> Path:
    from reben_cloud.build import build, make_plan
    from reben_cloud.sources.recognise import open_source
    from reben_cloud.store import open_store

    root = folder / "root"
    if not (root / "manifest.json").exists():
        source, official = open_source(f"synthetic:{samples}", metadata_paths=metadata)
        build(make_plan(source, official, open_store(root)), workers=2)
    return root


def payloads_of(root: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    from reben_cloud.bigearthnet.reben import REBEN
    from reben_cloud.formats import tar

    for path in sorted(root.glob("shards/*/s2/*.tar")):
        others = {
            m: Path(str(path).replace("/s2/", f"/{m}/").replace("-s2-", f"-{m}-"))
            for m in ("s2", "s1", "map")
        }
        read = {m: tar.iter_samples(REBEN.modality(m), p.read_bytes()) for m, p in others.items()}
        for i, (patch_id, _, _) in enumerate(read["s2"]):
            yield patch_id, {m: read[m][i][1] for m in read}


def make_once(path: Path, make: Callable[[Path], None]) -> Path:
    done = path / ".done"
    if not done.exists():
        path.mkdir(parents=True, exist_ok=True)
        make(path)
        done.touch()
    return path


# -- batches from payloads, the same code for every peer --------------------------------------------


class Buffers:
    """Batch arrays that are reused, and the copies that fill a row from payloads."""

    def __init__(self, *, floats: bool) -> None:
        from reben_cloud.bigearthnet.reben import REBEN

        specs = {n: s for modality in REBEN.modalities for n, s in modality.samples.items()}
        self.arrays = {n: np.zeros((BATCH, *s.shape), s.dtype) for n, s in specs.items()}
        self.flat = {n: a.view(np.uint8).reshape(BATCH, -1) for n, a in self.arrays.items()}
        self.copies = {modality.name: modality.copies for modality in REBEN.modalities}
        self.image = np.zeros((BATCH, 14, 120, 120), np.float32) if floats else None
        self.row = 0

    def add(self, **payloads: Any) -> bool:
        """Put one sample in; True when the batch is full."""
        for modality, payload in payloads.items():
            if modality == "map" and self.image is not None:
                continue  # no part of the image
            data = np.frombuffer(payload, np.uint8)
            for c in self.copies[modality]:
                self.flat[c.array][self.row, c.target : c.target + c.nbytes] = data[
                    c.source : c.source + c.nbytes
                ]
        if self.image is not None:
            # Each sample while it is in the cache: the fastest plain NumPy (4 strided copies and one of rows).
            image, i = self.image[self.row], self.row
            image[0:2] = self.arrays["s1"][i]
            for channel, array, band in CHANNELS:
                source = self.arrays[array][i, band]
                if array == "s2_10m":
                    image[channel] = source
                else:
                    factor = 2 if array == "s2_20m" else 6
                    block = image[channel].reshape(len(source), factor, len(source), factor)
                    for column in range(factor):
                        block[:, 0, :, column] = source
                    block[:, 1:] = block[:, :1]
        self.row = (self.row + 1) % BATCH
        return self.row == 0


def _channels() -> list[tuple[int, str, int]]:
    from reben_cloud.bigearthnet.bands import ARRAYS, BAND_SETS

    places = {b: (a, i) for a, names in ARRAYS.items() for i, b in enumerate(names)}
    return [(c, *places[b]) for c, b in enumerate(BAND_SETS["ALL"]) if b.startswith("B")]


CHANNELS = _channels()
