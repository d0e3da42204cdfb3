"""Where a prediction goes: a layer beside a root, or a parquet file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reben_cloud.errors import ConflictError
from reben_cloud.formats import parquet
from reben_cloud.layers import write_layer, write_table
from reben_cloud.layers.describe import check_name
from reben_cloud.layers.publish import JOURNAL, check_place
from reben_cloud.opening import open_layer
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layer_manifest import PATCH_ID
from reben_cloud.root.layers import read_layer_manifest
from reben_cloud.schema import TensorSpec
from reben_cloud.store import Store, open_store
from reben_cloud.training.outputs import Output, What
from reben_cloud.training.parts import Parts, Plan, delete_folder, difference, read_plan

NAMES: Mapping[What, str] = {"probabilities": "pred", "labels": "pred", "mask": "mask", "embedding": "emb"}
"""What a layer is called where no name is given."""

PLAN_KEY = "prediction"
"""Key of the plan in a parquet file's metadata, and in a layer's provenance."""

_PARQUET = ".parquet"
_OTHER_FILES = (".csv", ".tsv", ".json", ".arrow", ".feather", ".npy", ".tif", ".tiff")
"""Endings of files that somebody would like who does not want a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where a prediction is to be: a layer, or a file."""

    url: str
    store: Store
    """Of the layer, or of the folder that the file is in."""
    file: str
    """Name of the file; empty for a layer."""
    name: str
    """Name of the layer; empty for a file."""
    storage_options: Mapping[str, Any] | None

    @classmethod
    def of(
        cls,
        dest: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None,
        ds: Dataset,
        what: What,
        name: str | None,
    ) -> Target:
        """The place that is named, as far as it can be one: all that can be refused is refused before the work."""
        store = open_store(dest, storage_options)
        check_place(store, ds)
        suffix = Path(store.url).suffix
        if suffix.lower() in _OTHER_FILES or (suffix.lower() == _PARQUET and suffix != _PARQUET):
            raise ValueError(
                f"{dest}: a file of predictions is a {_PARQUET} file; anything else is a layer's folder"
            )
        if suffix == _PARQUET:
            if what == "mask":
                raise ValueError(
                    f"{dest}: masks are images, and become a layer: name a folder or prefix for it (of which GeoTIFFs "
                    "can be made)"
                )
            above, file = store.parent()
            return cls(url=store.url, store=above, file=file, name="", storage_options=storage_options)
        name = name or NAMES[what]
        check_name(ds, name)
        if what == "mask" and not ds.manifest.groups:
            raise ConflictError(
                f"{ds.url} has no shards, which an array layer is cut like; take a root with pixels"
            )
        return cls(url=store.url, store=store, file="", name=name, storage_options=storage_options)

    @property
    def folder(self) -> str:
        """Folder of the parts in `store`."""
        return f"{self.file}.unfinished" if self.file else f"{JOURNAL}/predict"

    def is_finished(self, plan: Plan) -> bool:
        """Whether this very prediction is there.

        Raises:
            ConflictError: If something else is.
        """
        way_out = "write elsewhere, or remove this one first"
        if self.file:
            if not self.store.exists(self.file):
                return False
            found = read_plan(self._file_metadata().get(PLAN_KEY.encode(), b""))
        elif (manifest := read_layer_manifest(self.store)) is not None:
            if manifest.name != self.name:
                raise ConflictError(f"{self.url} is there already, as the layer {manifest.name}; {way_out}")
            found = dict(manifest.provenance.get(PLAN_KEY, {}))
        else:
            foreign = [path for path, _ in self.store.list() if not path.startswith(f"{JOURNAL}/")]
            if foreign:
                raise ConflictError(
                    f"{self.url} is not empty: it holds {min(foreign)}; a layer has a folder or prefix of its own"
                )
            return False
        if found != dict(plan):
            raise ConflictError(f"{self.url} is there already, {difference(found, plan)}; {way_out}")
        delete_folder(self.store, self.folder)  # a run that was killed after its last put left it
        return True

    def _file_metadata(self) -> Mapping[bytes, bytes]:
        try:
            return (
                pq.read_schema(pa.BufferReader(parquet.arrow_memory(self.store.get(self.file)))).metadata
                or {}
            )
        except pa.ArrowInvalid as error:
            raise ConflictError(f"{self.url} is there already, and is no parquet file: {error}") from error

    def write(self, parts: Parts, output: Output, ds: Dataset) -> None:
        """Make the layer or the file of all parts, and delete these."""
        provenance = {PLAN_KEY: dict(parts.plan)}
        title = f"{output.what} of {parts.plan['model']}"
        if self.file:
            self._write_file(parts, output)
        elif output.what == "mask":
            write_layer(
                self.url,
                ds.without_layers(),
                name=self.name,
                tensors=_mask_tensor(self.name, output, ds),
                patches=partial(_arrays, parts, output),
                title=title,
                is_map=output.classes == ds.schema.classes,
                provenance=provenance,
                storage_options=self.storage_options,
            )
        else:
            write_table(
                self.url,
                ds.without_layers(),
                name=self.name,
                table=_batches(parts, output),
                key="patch_id",
                many=False,
                title=title,
                provenance=provenance,
                storage_options=self.storage_options,
            )
        delete_folder(self.store, self.folder)

    def export_masks(self, ds: Dataset, folder: str | os.PathLike[str]) -> None:
        """The masks of the finished layer as GeoTIFFs; a killed export goes on."""
        layer = open_layer(self.url, self.storage_options)
        chosen = ds.without_layers().with_layers(layer).search(has=self.name)
        chosen.export_geotiff(folder, modalities=[self.name])

    def _write_file(self, parts: Parts, output: Output) -> None:
        batches = _batches(parts, output)
        first = next(batches)
        schema = first.schema.with_metadata({PLAN_KEY: json.dumps(parts.plan)})
        with tempfile.TemporaryDirectory(prefix="reben_cloud-") as scratch:
            path = Path(scratch) / "file.parquet"
            with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
                writer.write_batch(first)
                for batch in batches:
                    writer.write_batch(batch)
            self.store.put_file(self.file, path)


def _mask_tensor(name: str, output: Output, ds: Dataset) -> TensorSpec:
    return TensorSpec(
        name=name,
        shape=output.shape,
        dtype=output.dtype.name,
        fill=output.fill,
        pixel_m=ds.schema.patch_m / output.shape[-1],
    )


def _batches(parts: Parts, output: Output) -> Iterator[pa.RecordBatch]:
    for ids, data in parts:
        columns = output.columns(_values(data, len(ids), output))
        yield pa.record_batch({PATCH_ID: pa.array(ids, pa.string()), **columns})


def _arrays(parts: Parts, output: Output, ids: Sequence[str]) -> Iterator[tuple[str, NDArray[np.generic]]]:
    wanted = set(ids)
    for found, data in parts:
        for patch_id, values in zip(found, _values(data, len(found), output), strict=True):
            if patch_id in wanted:
                yield patch_id, values


def _values(data: memoryview, num_patches: int, output: Output) -> NDArray[np.generic]:
    return np.frombuffer(data, output.dtype).reshape(num_patches, *output.shape)
