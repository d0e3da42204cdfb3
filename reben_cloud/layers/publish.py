"""The tables of a layer, and the document that makes it one: how they are encoded, and put last."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reben_cloud.errors import ConflictError
from reben_cloud.formats import parquet, vectors
from reben_cloud.formats.parquet import Seal
from reben_cloud.root import layout
from reben_cloud.root.commit import begin, check_presence, commit
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.digest import sealed
from reben_cloud.root.layer_manifest import LayerManifest
from reben_cloud.root.layers import Layer, read_layer_manifest
from reben_cloud.store import Store

JOURNAL = f"{layout.JOURNAL}/layer"
"""Folder of what a layer's making leaves while it is not done: not part of the layer."""

PLAN = f"{JOURNAL}/plan.json"
"""What the making began with."""


def encode_table(tables: Iterable[pa.Table], schema: pa.Schema, *, row_group_rows: int) -> tuple[bytes, Seal]:
    """The bytes of a sealed parquet with these tables on end, and its seal; same in, same out."""
    out = io.BytesIO()
    text = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    with pq.ParquetWriter(
        out, schema, compression="zstd", write_page_checksum=True, use_dictionary=text
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=row_group_rows)
    parquet.add_chunk_sums(out)
    return out.getvalue(), Seal.of(out)


def write_groups(
    path: Path, groups: Iterable[pa.Table], schema: pa.Schema, *, of_few: Sequence[str], statistics: bool
) -> Seal:
    """Write a sealed parquet, a row group for each of these tables, holding one of them at a time; its seal.

    Args:
        path: The file to be.
        groups: The row groups.
        schema: Their columns.
        of_few: Columns that have few different values in a row group.
        statistics: Whether the smallest and largest value of each column of a row group are kept.
    """
    tails = list[Mapping[str, vectors.Tail]]()
    with pq.ParquetWriter(
        path,
        schema,
        write_page_checksum=True,
        use_dictionary=list(of_few),
        **vectors.writer_options(schema, statistics=statistics),
    ) as writer:
        for table in groups:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            tails.append(vectors.tails_of(table))
    with path.open("r+b") as file:
        parquet.add_chunk_sums(file, tails=tails)
        return Seal.of(file)


def plain(beginning: Mapping[str, object]) -> Mapping[str, object]:
    """What a making begins with, as JSON has it: to be compared with what was read."""
    return json.loads(json.dumps(beginning))  # type: ignore[no-any-return]


def plan_of(beginning: Mapping[str, object]) -> bytes:
    """What a making began with, as it is stored while the layer is not done."""
    return json.dumps(sealed(beginning), indent=2).encode()


def check_place(store: Store, ds: Dataset) -> None:
    """Refuse a place inside the root that something is for.

    Raises:
        ConflictError: If it is there.
    """
    if store.url.startswith(f"{ds.url.rstrip('/')}/"):
        raise ConflictError(
            f"{store.url} is inside the dataset {ds.url}, which never changes, and of which `verify` would say that it "
            "holds what is not part of it; name a place of its own, beside it"
        )


def claim(store: Store, ds: Dataset, beginning: Mapping[str, object]) -> Layer | None:
    """Make a place this layer's, or find that it is; the layer if it is finished already.

    Args:
        store: Where the layer is to be.
        ds: What it is for.
        beginning: What ``layer.json`` will say, as far as it is known before anything is read.

    Raises:
        ConflictError: If something else is published or being made there, or it is inside the dataset.
    """
    check_place(store, ds)
    there = read_layer_manifest(store)
    if there is not None:
        if all(there[key] == value for key, value in beginning.items()):
            return Layer(store, there)
        differ = next(key for key, value in beginning.items() if there[key] != value)
        raise ConflictError(
            f"{store.url} has a layer already, with another {differ}; a layer never changes: write into a new place, "
            "or remove this one first (reben-cloud layer remove)"
        )
    paths = [path for path, _ in store.list()]
    if paths and not any(path.startswith(f"{JOURNAL}/") for path in paths):
        raise ConflictError(
            f"{store.url} is not empty: it holds {min(paths)}; a layer has a folder or prefix of its own"
        )
    text = plan_of(beginning)
    if not begin(store, PLAN, text) and bytes(store.get(PLAN)) != text:
        raise ConflictError(
            f"{store.url}: another layer was begun there, or this one of something else; remove that "
            "(reben-cloud layer remove), and write again"
        )
    return None


def commit_layer(store: Store, manifest: LayerManifest, written: Mapping[str, int]) -> Layer:
    """Put ``layer.json``, once all objects are there.

    Args:
        store: Where the layer is.
        manifest: What it says of itself.
        written: Path -> size in bytes of each object.

    Raises:
        StorageError: If one is not.
        ConflictError: If another process has published there meanwhile.
    """
    check_presence(store, written)
    commit(store, layout.LAYER_MANIFEST, manifest.to_bytes())
    return Layer(store, manifest)
