"""The main job in a minute, on a made-up dataset in a local folder: build, search, stream, export.

It shows what the library does by calling it as any user would, and says so line by line.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

import numpy as np

from reben_cloud.build import MANIFEST, build, make_plan
from reben_cloud.files.paths import local_path
from reben_cloud.opening import open as open_dataset
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from reben_cloud.wording import counted, size_text, wrapped

logger = logging.getLogger(__name__)

AREA = (9.5, 46.3, 17.2, 49.1)
"""West, south, east, north of Austria, degrees."""

TIME = "2017-06-01/2017-08-31"
"""Summer 2017."""


def run_demo(
    folder: str | os.PathLike[str], *, num_patches: int = 600, say: Callable[[str], object] = logger.info
) -> None:
    """Build a small root below `folder`, look at it, search it, stream it and export a part.

    Args:
        folder: Where to; the root goes to ``root`` in it, the LMDB to ``lmdb``. What is there from an
            earlier demo is used again.
        num_patches: Size of the made-up dataset.
        say: Called with each line of the story.

    Raises:
        RebenError: If a step fails.
    """
    folder = local_path(folder, "the folder of the demo")
    root = folder / "root"

    say(f"1. Build a root of {num_patches:,} patches (real ids, places and labels; computed pixels)")
    if (root / MANIFEST).exists():
        held = len(open_dataset(root))
        say(f"   {root} is there already with {held:,} patches, and a root never changes: used as it is")
        if held != num_patches:
            say(f"   for one of {num_patches:,}, remove {folder} or name another folder (--root)")
    else:
        start = time.perf_counter()
        source, metadata = open_source(f"synthetic:{num_patches}")
        build(make_plan(source, metadata, open_store(root)))
        say(f"   {time.perf_counter() - start:.1f} s")
    dataset = open_dataset(root)
    for line in dataset.summary().splitlines():
        say(f"   {line}")

    say("2. Search by area and time: Austria, summer 2017, without snow and cloud")
    start = time.perf_counter()
    found = dataset.search(bbox=AREA, datetime=TIME, recommended=True)
    say(
        f"   {counted(len(found), 'patch', 'patches')} in {(time.perf_counter() - start) * 1e3:.0f} ms, such as"
    )
    for patch_id in found.patch_ids[:3]:
        say(f"   {patch_id}")

    say("3. Stream one shuffled epoch of all patches")
    loader = RawLoader(dataset.selection, batch_size=64, seed=0)
    seen = []
    for batch in loader:
        seen.append(batch["index"].copy())
        if len(seen) == 1:
            arrays = [f"{name} {array.dtype}{list(array.shape)}" for name, array in batch.items()]
            for line in wrapped([("a batch", arrays)]):
                say(f" {line}")
    stats = loader.stats()
    once = np.array_equal(np.sort(np.concatenate(seen)), np.arange(len(dataset)))
    say(
        f"   {stats.samples:,} samples in {stats.batches} batches, each patch {'exactly once' if once else 'NOT ONCE'}"
    )
    say(f"   {stats.samples_per_s:,.0f} samples/s, {size_text(stats.bytes_per_s)}/s")

    say("4. Export the patches found as an LMDB that rico-hdl's readers (ConfigILM) open")
    lmdb = folder / "lmdb"
    if lmdb.exists():
        say("   there already")
    else:
        found.export_lmdb(lmdb)
    size = sum(path.stat().st_size for path in lmdb.rglob("*") if path.is_file())
    say(f"   {counted(len(found), 'patch', 'patches')}, {size_text(size)}")

    say("Everything lies in")
    say(f"   {root}  the root: manifest, patches.parquet, catalog.json, zarr/, shards/")
    say(f"   {lmdb}  the LMDB")
    say("Next")
    say(f"   reben-cloud search {root} --country Finland --label 'Coniferous forest'")
    say(f"   reben-cloud verify {root}")
    say(f"   reben-cloud serve {root}")
