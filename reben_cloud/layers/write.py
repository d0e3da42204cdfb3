"""`write_layer`: arrays of patches, in whatever order they come, become an array layer of a root.

Written again after a kill, it asks only for what is not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reben_cloud.build import Progress, silent
from reben_cloud.build.lease import Lease
from reben_cloud.errors import ConflictError
from reben_cloud.files.scratch import private_scratch
from reben_cloud.layers import publish
from reben_cloud.layers.array_work import ArrayWork, Patches
from reben_cloud.layers.describe import layer_schema
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layers import Layer
from reben_cloud.schema import ArraySpec, TensorSpec
from reben_cloud.store import open_store


def write_layer(
    dest: str | os.PathLike[str],
    ds: Dataset,
    *,
    name: str,
    tensors: TensorSpec | Sequence[TensorSpec],
    patches: Patches | Callable[[Sequence[str]], Patches],
    arrays: Sequence[ArraySpec] = (),
    title: str = "",
    is_map: bool = False,
    provenance: Mapping[str, object] | None = None,
    allow_missing: int = 0,
    storage_options: Mapping[str, object] | None = None,
    scratch: str | os.PathLike[str] | None = None,
    threads: int = 2,
    progress: Progress = silent,
) -> Layer:
    """Write an array layer of a root, or finish writing it.

    Args:
        dest: Path or URL of the layer; the root itself is left as it is.
        ds: The root that the layer is for, or an export of it.
        name: Name of the layer: what `Dataset.modalities` and the batches call it.
        tensors: What every patch has: names, shapes, dtypes, fill values.
        patches: Pairs of a patch id and its arrays, each patch at most once, in any order. Or a function that gives
            such pairs for the ids that it is asked for: after a killed run, those that are not there yet.
        arrays: Batch arrays that the tensors fill; by default one with the layer's name where they are of one shape
            and dtype, and else one each.
        title: What it is, for people.
        is_map: Whether its pixels are codes of the dataset's classes, so that it can be trained on.
        provenance: What it is made from, and how: plain JSON that ``layer.json`` keeps. A run that finds a layer, or an
            unfinished one, takes it for its own if this and all of the above are the same.
        allow_missing: How many ids may be in no patch of the root before that is an error; they are left out.
        storage_options: Credentials and endpoint of `dest`.
        scratch: Folder for arrays that are not in a shard yet; one below the temporary folder by default. It needs room
            for all of them.
        threads: Shards that are written at a time.
        progress: Wraps what comes one by one.

    Returns:
        The layer, for `Dataset.with_layers`.

    Raises:
        ConflictError: If something else is there.
        SourceError: If an id is in no patch, or comes twice.
        TypeError: If `patches` gives something else.
        InvalidPatchError: If arrays are not of the shapes and dtypes of `tensors`.
        StorageError: If the store or the scratch disk fails.
        ValueError: If a name is taken.
    """
    specs = (tensors,) if isinstance(tensors, TensorSpec) else tuple(tensors)
    schema = layer_schema(ds, name, specs, arrays=arrays, title=title, is_map=is_map)
    if not ds.manifest.groups:
        raise ConflictError(
            f"{ds.url} is a catalog of metadata alone, without the shards that an array layer is cut like; "
            "make the layer for a root with pixels"
        )
    work = ArrayWork(
        store=open_store(dest, storage_options),
        ds=ds,
        schema=schema,
        title=title,
        provenance=dict(provenance or {}),
        scratch=Path(scratch) if scratch is not None else private_scratch(),
    )
    done = publish.claim(work.store, ds, work.beginning)
    if done is not None:
        return done
    with Lease(work.store, f"{publish.JOURNAL}/lease.json") as held:
        receipts = {
            number: found for number in range(len(work.shards)) if (found := work.read_receipt(number))
        }
        left = [number for number in range(len(work.shards)) if number not in receipts]
        if left:
            work.spool.prepare()
            work.collect(patches, left, allow_missing=allow_missing, progress=progress)
            held.check()
            with ThreadPoolExecutor(threads) as pool:
                for receipt in progress(pool.map(work.write_shard, left), len(left), "shards"):
                    receipts[receipt.number] = receipt
                    held.check()
        layer = work.commit([receipts[number] for number in range(len(work.shards))])
    work.spool.delete()
    return layer
