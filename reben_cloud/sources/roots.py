"""A published root as a source: to copy it, to cut its shards again, or to build a part of it.

Payloads are read out of the shards, each with one range request, and checked against the checksums
that the root itself has for them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.formats import tar
from reben_cloud.root import layout
from reben_cloud.root.arrow import codes_of, texts_of
from reben_cloud.root.documents import (
    again,
    lost,
    open_patches,
    read_manifest,
    read_patches,
)
from reben_cloud.root.layout import MANIFEST, PATCHES
from reben_cloud.root.metadata import described_columns, described_metadata, with_columns_of
from reben_cloud.root.patch import Patch, PatchInfo
from reben_cloud.root.placement import check_places
from reben_cloud.root.references import Found, RemoteObjects, Span, options_for, places_in
from reben_cloud.schema import Modality, Schema
from reben_cloud.store import Store


@dataclass(frozen=True, slots=True)
class RootSource:
    """The patches of a root."""

    store: Store
    """The root."""
    schema: Schema
    """What every patch has."""
    metadata: pa.Table
    """The metadata of its patches, with times and places, sorted by ``patch_id``."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """Nothing: a root says what it has."""
        return {}

    def described(self, metadata: pa.Table) -> pa.Table:
        """The metadata with times and places from the root's own table."""
        return with_columns_of(metadata, self.metadata)

    @property
    def is_remote(self) -> bool:
        """Whether a read waits for a network, so that several at once are worth it."""
        return not self.store.is_local

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "another root"

    def describe(self) -> str:
        """One line for people."""
        return f"root {self.store.url}"

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Those of the root's own metadata; the metadata that it is built with may be others."""
        return {m.name: self.metadata.column(m.key_column).to_pylist() for m in self.schema.modalities}

    def identity(self) -> Mapping[str, str]:
        """What the manifest vouches for: a root never changes, another one has another manifest."""
        return {MANIFEST: hashlib.sha256(self.store.get(MANIFEST)).hexdigest()}

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:  # noqa: ARG002 - the protocol's
        """Nothing: a shard holds many patches."""
        return ""

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch.

        Raises:
            ChecksumError: If a payload is not the one that the root's index knows.
        """
        places = _places(self.store.url, self.store)
        at = places.find(info.patch_id, self.store.url)
        payloads = {}
        for modality in map(self.schema.modality, modalities):
            name = modality.name
            if places.objects is not None:
                payloads[name] = self._referenced(places, at, modality, info.patch_id)
                continue
            path = layout.shard(str(places.group[at]), name, int(places.shard[at]))
            start = int(places.row[at]) * tar.record_bytes(modality) + tar.PAYLOAD_OFFSET
            checksum = int(places.xxh3[name][at])
            what = f"{self.store.url}/{path}: the {name} payload of {info.patch_id}"
            read = partial(self._payload, path, start, modality.payload_bytes, checksum, what)
            payloads[name] = again(self.store, path, read)
        return Patch(info=info, payloads=payloads)

    def _referenced(self, places: _Places, at: int, modality: Modality, patch_id: str) -> bytes:
        """A payload that lies in somebody else's object."""
        assert places.objects is not None
        number, start = (int(column[at]) for column in places.references[modality.name])
        span = Span(start, modality.payload_bytes, np.zeros(1, np.int64))
        payload = bytes(places.objects.read(number, [span])[0])
        sums = places.xxh3.get(modality.name)
        checksum = None if sums is None else int(sums[at])
        places.objects.check_payload(
            payload, modality, number=number, start=start, checksum=checksum, patch_id=patch_id
        )
        return payload

    def _payload(self, path: str, start: int, nbytes: int, checksum: int, what: str) -> bytes:
        payload = bytes(self.store.get_range(path, start, nbytes))
        if xxhash.xxh3_64_intdigest(payload) != checksum:
            raise ChecksumError(f"{what} is damaged; `reben-cloud verify` says what else is")
        return payload


def open_root(store: Store) -> tuple[RootSource, pa.Table] | None:
    """The source behind a root and its metadata in the official schema; None if there is no manifest.

    Raises:
        SourceError: If the manifest is none of ours, or damaged.
    """
    manifest = read_manifest(store)
    if manifest is None:
        return None
    names = manifest.metadata_columns
    there = open_patches(store, manifest).schema.names
    table = read_patches(store, manifest, described_columns(there, names))
    metadata = described_metadata(table, names)
    return RootSource(store, manifest.schema, metadata), metadata.select(names)


class _Places(NamedTuple):
    """Where each patch lies, sorted by id; arrays of n."""

    ids: NDArray[np.bytes_]
    group: NDArray[Any]
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    xxh3: Mapping[str, NDArray[np.uint64]]
    objects: RemoteObjects | None
    """What a reference root refers to; None for one that has its payloads."""
    references: Mapping[str, Found]
    """Modality -> object and first byte of each payload there."""

    def find(self, patch_id: str, url: str) -> int:
        at = int(np.searchsorted(self.ids, patch_id.encode()))
        if at == len(self.ids) or self.ids[at] != patch_id.encode():
            raise NotFoundError(f"{url} has no patch {patch_id}")
        return at


@functools.lru_cache(maxsize=2)
def _places(_url: str, store: Store) -> _Places:
    """The index of a root, read once per process (60 MB of memory for the whole dataset)."""
    manifest = read_manifest(store)
    if manifest is None:
        raise lost(store, MANIFEST)
    modalities, remote = manifest.modalities, manifest.references
    there = set(open_patches(store, manifest).schema.names)
    summed = [m for m in modalities if remote is None or layout.checksum_column(m) in there]
    sums = [layout.checksum_column(m) for m in summed]
    referred = () if remote is None else modalities
    name = f"{store.url}/{PATCHES}"
    table = read_patches(
        store,
        manifest,
        [
            *(layout.ID, layout.SHARD_GROUP, layout.SHARD, layout.SHARD_ROW),
            *(column for m in referred for column in layout.place_columns(m)),
            *sums,
        ],
    )
    ids = texts_of(table.column(layout.ID))
    order = np.argsort(ids)
    by_id = table.take(pa.array(order))
    names, codes = codes_of(table.column(layout.SHARD_GROUP))
    shards, rows = table.column(layout.SHARD).to_numpy(), table.column(layout.SHARD_ROW).to_numpy()
    check_places(manifest, names=names, codes=codes, shards=shards, rows=rows, name=name)
    return _Places(
        ids[order],
        np.array(names, object)[codes[order]],
        shards[order],
        rows[order],
        {m: table.column(c).to_numpy()[order] for m, c in zip(summed, sums, strict=True)},
        None if remote is None else RemoteObjects(remote, options_for(store, remote)),
        {m: places_in(by_id, manifest.schema.modality(m), remote or (), name=name) for m in referred},
    )
