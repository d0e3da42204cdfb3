"""`predict`: what a model says of every patch of a selection, as a layer beside the root or as a parquet file.

Each patch is predicted once, over any number of processes and interruptions; the bytes at the end are those of a run
that nothing disturbed. What is kept of an answer is `outputs`' matter, what is done already that of `parts`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from reben_cloud.bigearthnet.inputs import choose_bands
from reben_cloud.build import Progress, silent
from reben_cloud.errors import NotFiniteError, missing_extra
from reben_cloud.root import layout
from reben_cloud.root.selection import Selection
from reben_cloud.torch import ReadOptions, StreamLoader
from reben_cloud.training.compute import Compute, Precision, compute_context
from reben_cloud.training.feed import input_modalities, model_input
from reben_cloud.training.models import ModelSpec, load_pretrained, weights_digest
from reben_cloud.training.outputs import Output, What
from reben_cloud.training.parts import Parts, Plan
from reben_cloud.training.target import Target

try:
    import torch
    from torch import nn
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

_PREFETCH = 8
"""Shards fetched ahead; patches come in stored order, one shard after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What came of a call of `predict`."""

    dest: str
    """The layer or file."""
    what: str
    """What is kept of each patch."""
    name: str
    """Name of the layer; empty for a file."""
    num_patches: int
    """Patches of the selection, each once."""
    num_predicted: int
    """Those that this process predicted now; the rest were there, or are others' share."""
    num_left: int
    """Those that nobody has predicted yet, of a share of the work; 0 if `dest` is finished."""

    def to_text(self) -> str:
        """The same for people."""
        if self.num_left:
            return (
                f"{self.num_predicted:,} of {self.num_patches:,} patches predicted, {self.num_left:,} are left; when "
                f"all shares are through, the same command without a share writes {self.dest}"
            )
        now = f"{self.num_predicted:,} predicted now" if self.num_predicted else "nothing was left to predict"
        kind = f"layer {self.name}" if self.name else "file"
        return f"{self.what} of {self.num_patches:,} patches in the {kind} {self.dest}; {now}"


def predict(
    model: str | os.PathLike[str],
    selection: Selection,
    dest: str | os.PathLike[str],
    *,
    what: What = "probabilities",
    name: str | None = None,
    bands: str | Sequence[str] | None = None,
    precision: Precision = "fp32",
    batch_size: int = 256,
    share: tuple[int, int] = (0, 1),
    geotiffs: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    **options: Unpack[ReadOptions],
) -> Prediction:
    """Write what a model says of every patch of a selection, each patch once.

    ``probabilities`` become a table layer: the column ``probabilities``, a list in the order of the model's classes,
    which `Selection.suspects` takes, and a column for each class, to search by. ``labels``: a column of booleans for
    each class, true above the model's threshold of it (0.5 where none was chosen). ``embedding``: a column ``vector``
    of float16, which `Selection.nearest` takes. ``mask``: an array layer of codes of the map, the first code of each
    class. If `dest` ends with ``.parquet``, all but masks become one file of these columns and ``patch_id``, in the
    order in which the patches are stored.

    A call that was killed goes on where it was, if it is made again: at most `parts.PART_PATCHES` patches and a batch
    are predicted twice by each process, and `dest` ends with the same bytes. Under torchrun all processes share the
    work, and the first one writes `dest`. A call with the same arguments that finds `dest` finished leaves it.

    Args:
        model: Folder of a model, or ``owner/name`` on the hub.
        selection: What to predict. A patch that it has several times is predicted once.
        dest: Path or URL of the layer, or of a ``.parquet`` file.
        what: What is kept of each patch.
        name: Name of the layer; by default ``pred``, ``mask`` or ``emb``.
        bands: Order of the model's input, where neither its files nor its name tell.
        precision: Of the forward pass.
        batch_size: Patches that one process predicts at a time; it is a part of the plan, because kernels round
            otherwise with other batches.
        share: (i, n): only the i-th of n shares of the work, for processes that do not know of each other; `dest` is
            written by a call without a share, when all are through.
        geotiffs: Folder for masks as GeoTIFFs besides, as `Selection.export_geotiff` writes them.
        storage_options: Credentials and endpoint of `dest`.
        progress: Wraps the batches.
        **options: For `StreamLoader`, such as ``cache_dir``.

    Raises:
        ConflictError: If `dest` is something else, or another prediction was begun there.
        NotFiniteError: If an output is infinite or not a number; it names the patch.
        NotFoundError: If the selection is empty, or there is no such model.
        ValueError: If the model has nothing of the kind, or the dataset lacks a band.
    """
    selection.require_patches("nothing to predict")
    selection.refuse_repeats("a prediction")
    if geotiffs is not None and what != "mask":
        raise ValueError(f"geotiffs are made of masks; {what} are no images")
    if batch_size < 1 or not 0 <= share[0] < share[1]:
        raise ValueError(
            f"batch_size must be at least 1 and share (i, n) with i < n, got {batch_size}, {share}"
        )
    with compute_context(precision) as compute:
        schema = selection.dataset.schema
        named = None if bands is None else choose_bands(bands, schema=schema)
        network, spec = load_pretrained(model, bands=named)
        output = Output(network.to(compute.device), spec, what, spec.decision_thresholds)
        patches = _in_stored_order(selection)
        plan = _plan(os.fspath(model), network, spec, patches, what, precision, batch_size)
        target = Target.of(dest, storage_options, patches.dataset, what, name)
        is_finished = target.is_finished(plan)
        parts = Parts(
            store=target.store,
            folder=target.folder,
            plan=plan,
            num_patches=len(patches),
            batch_size=batch_size,
        )
        if not is_finished:
            parts.claim()
        mine = range(len(parts))[compute.rank * share[1] + share[0] :: compute.world_size * share[1]]
        done = set(mine) if is_finished else parts.done()
        left = [number for number in mine if number not in done]
        _predict(network, spec, output, patches, parts, left, compute, progress, **options)
        compute.wait()
    num_predicted = sum(len(parts.span(number)) for number in left)
    num_left = 0
    if share != (0, 1) and not is_finished:
        done = parts.done()
        num_left = sum(len(parts.span(number)) for number in range(len(parts)) if number not in done)
    elif compute.rank == 0:
        if not is_finished:
            target.write(parts, output, patches.dataset)
        if geotiffs is not None:
            target.export_masks(patches.dataset, geotiffs)
    return Prediction(
        dest=target.url,
        what=what,
        name=target.name,
        num_patches=len(patches),
        num_predicted=num_predicted,
        num_left=num_left,
    )


def _in_stored_order(selection: Selection) -> Selection:
    """The patches of a selection, each once, in the order of their shards: so they are read fastest."""
    rows = np.unique(selection.rows)
    once = Selection(selection.dataset, selection.table, rows)
    places = once.columns([layout.SHARD_GROUP, layout.SHARD, layout.SHARD_ROW])
    group = places.column(layout.SHARD_GROUP).cast(pa.string()).to_numpy(zero_copy_only=False).astype(str)
    shard, row = (places.column(name).to_numpy() for name in (layout.SHARD, layout.SHARD_ROW))
    return Selection(selection.dataset, selection.table, rows[np.lexsort((row, shard, group))])


def _plan(
    model: str,
    network: nn.Module,
    spec: ModelSpec,
    patches: Selection,
    what: What,
    precision: Precision,
    batch_size: int,
) -> Plan:
    ids = xxhash.xxh3_128_hexdigest("\n".join(patches.patch_ids).encode())
    ds = patches.dataset
    read = [name for name in input_modalities(spec, ds.schema) if name in ds.layers]
    return {
        "what": what,
        "model": Path(model).name,
        "architecture": spec.architecture,
        "weights_sha256": weights_digest(network),
        "bands": list(spec.bands),
        "image_px": spec.image_px,
        "statistics": {name: asdict(one) for name, one in sorted(spec.statistics.items())},
        "classes": list(spec.classes.names),
        "codes": [codes[0] for codes in spec.classes.codes] if what == "mask" else [],
        "thresholds": list(spec.decision_thresholds) if what == "labels" else [],
        "precision": precision,
        "batch_size": batch_size,
        "root": ds.manifest.fingerprint,
        "layers": {name: ds.layers[name].manifest.digest for name in read},
        "num_patches": len(patches),
        "patches_xxh3": ids,
    }


def _predict(
    network: nn.Module,
    spec: ModelSpec,
    output: Output,
    patches: Selection,
    parts: Parts,
    numbers: Sequence[int],
    compute: Compute,
    progress: Progress,
    **options: Unpack[ReadOptions],
) -> None:
    """Predict some parts and write them; a batch is the same whichever other parts are predicted with it."""
    if not numbers:
        return
    wanted = np.concatenate([np.asarray(parts.span(number)) for number in numbers])
    mine = Selection(patches.dataset, patches.table, patches.rows[wanted])
    schema = patches.dataset.schema
    options.setdefault("prefetch", _PREFETCH)
    loader = StreamLoader(
        mine,
        modalities=input_modalities(spec, schema),
        columns=[],
        batch_size=parts.batch_size,
        shuffle=False,
        rank=0,
        world_size=1,
        lanes=1,
        **options,
    )
    inputs = model_input(spec, schema).to(compute.device)
    ids, values = mine.patch_ids, np.empty((parts.size, *output.shape), output.dtype)
    ahead, at, start = list(numbers), 0, 0
    writing: Future[None] | None = None
    network.eval()
    with torch.inference_mode(), ThreadPoolExecutor(1) as pool:
        for raw in progress(loader, len(loader), "batches"):
            with compute.autocast():
                found, finite = output(inputs(compute.to_device(raw)))
            kept = output.values_of(found)
            _check_finite(kept, finite.cpu().numpy(), ids[start + at :])
            values[at : at + len(kept)] = kept
            at += len(kept)
            if at == len(parts.span(ahead[0])):
                if writing is not None:
                    writing.result()  # one part at most waits to be written
                writing = pool.submit(parts.write, ahead.pop(0), ids[start : start + at], values[:at])
                values, start, at = np.empty_like(values), start + at, 0
        if writing is not None:
            writing.result()
    assert not ahead


def _check_finite(values: NDArray[np.generic], finite: NDArray[np.bool_], ids: Sequence[str]) -> None:
    if values.dtype.kind == "f":
        finite = finite & np.isfinite(values).reshape(len(values), -1).all(1)
    if not finite.all():
        raise NotFiniteError(
            f"prediction stops: the output for {ids[int(finite.argmin())]} is infinite, not a number, or too large for "
            f"{values.dtype}; look at the patch and the weights, or take precision fp32"
        )
