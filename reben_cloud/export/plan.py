"""What an export is to hold: its patches, modalities and records, and the name of all that."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, ConflictError, NotFoundError, SourceError
from reben_cloud.root import layout
from reben_cloud.root.documents import open_patches, read_patches
from reben_cloud.root.exported import ExportedLayer, ExportManifest
from reben_cloud.root.manifest import InvalidManifestError
from reben_cloud.schema import Modality
from reben_cloud.store import open_store

if TYPE_CHECKING:
    from reben_cloud.root.selection import Selection

MANIFEST = layout.EXPORT_MANIFEST
"""What the folder says of itself; written last."""


def modalities_of(selection: Selection, asked: Sequence[str] | None) -> tuple[str, ...]:
    """What to export of what the dataset has.

    Raises:
        ValueError: If a modality is not there, or none is.
    """
    dataset = selection.dataset
    chosen = dataset.choose_modalities(asked)
    if not chosen:
        raise ValueError(f"{dataset.url} is a catalog of metadata alone and has no pixels to export")
    return chosen


def layers_of(chosen: Selection, modalities: Sequence[str]) -> dict[str, ExportedLayer]:
    """The layers that an export of these patches and modalities has: array layers among those, and every table."""
    dataset = chosen.dataset
    there = dict(dataset.manifest.layers) if isinstance(dataset.manifest, ExportManifest) else {}
    for name, layer in dataset.layers.items():
        said = layer.manifest
        there[name] = ExportedLayer(kind=said.kind, title=said.title, digest=said.digest, coverage=0)
    kept = {name: one for name, one in there.items() if one.kind != "array" or name in modalities}
    present = chosen.columns([layout.present_column(name) for name in kept]).columns if kept else []
    return {
        name: replace(one, coverage=pc.sum(column).as_py() or 0)
        for (name, one), column in zip(kept.items(), present, strict=True)
    }


def read_manifest(folder: Path) -> ExportManifest:
    """What the folder of an export says of itself.

    Raises:
        SourceError: If it cannot be read, or is damaged.
        RebenError: If a newer version has exported it.
    """
    file = folder / MANIFEST
    try:
        return ExportManifest.from_bytes(file.read_bytes(), where=os.fspath(folder))
    except (OSError, InvalidManifestError) as error:
        raise SourceError(f"{file}: cannot be read ({error}); remove {folder} and export again") from error


def existing(path: Path, selection: Selection, kind: str) -> ExportManifest | None:
    """The manifest of the export at `path`; None when nothing is there.

    Raises:
        ConflictError: If something else is there.
        SourceError: If an export is there whose manifest is damaged.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if not (path / MANIFEST).exists():
        raise ConflictError(f"{path} exists and is not an export; name a folder that does not exist")
    found = read_manifest(path)
    if found.kind != kind:
        raise ConflictError(
            f"{path} is an export of another kind ({found.kind}, not {kind}); name another folder"
        )
    if found.fingerprint != selection.dataset.manifest.fingerprint:
        raise ConflictError(
            f"{path} is an export of another root (fingerprint {found.fingerprint}); name another folder"
        )
    return found


def reconcile(
    selection: Selection,
    modalities: tuple[str, ...],
    path: Path,
    there: ExportManifest | None,
    *,
    update: bool,
    prune: bool,
) -> tuple[Selection, tuple[str, ...], tuple[int, int]]:
    """The patches, in the order of the table, and modalities that the folder is to hold.

    And how many patches that adds to an existing export, and drops from it; nothing is known of a damaged one.

    Raises:
        ConflictError: If the export that is to change does not say what it holds, or holds what the root lacks.
    """
    rows = np.unique(selection.rows)
    change = (0, 0)
    if there is not None and (update or prune):
        try:
            ids = read_patches(open_store(path), there, ["id"]).column("id").to_pylist()
        except (ChecksumError, NotFoundError) as error:
            if update and prune:
                return afresh(selection, rows), modalities, change
            raise ConflictError(
                f"{path} is damaged: patches.parquet cannot be read ({error}), so nothing says what it holds; "
                "select all that it is to hold and give both --update and --prune"
            ) from error
        old = selection.dataset.search(ids=ids, missing_ok=True).rows
        if not prune and len(old) < len(ids):
            raise ConflictError(
                f"{path} has {len(ids) - len(old):,} patches that {selection.dataset.url} lacks; "
                "update it from the whole root"
            )
        if update != prune:
            _check_layers(path, there, layers_of(selection, selection.dataset.modalities), whole=update)
            rows = np.union1d(old, rows) if update else np.intersect1d(old, rows)
            both = {*there.modalities, *modalities} if update else {*there.modalities} & {*modalities}
            modalities = tuple(m for m in selection.dataset.schema.modality_names if m in both)
        kept = len(np.intersect1d(old, rows))
        change = len(rows) - kept, len(ids) - kept
    return afresh(selection, rows), modalities, change


def _check_layers(
    path: Path, there: ExportManifest, given: Mapping[str, ExportedLayer], *, whole: bool
) -> None:
    """Refuse to change an export by layers other than those that it was made with, or, if `whole`, without them."""
    for name, layer in there.layers.items():
        if whole and name not in given:
            raise ConflictError(
                f"{path} has the layer {name}, which does not stand beside the root now: attach it (--layer, or "
                "layers= of open), or make the export anew with both --update and --prune"
            )
        if name in given and given[name].digest != layer.digest:
            raise ConflictError(
                f"{path} has another layer {name} than the one beside the root now; attach that one, or make the "
                "export anew with both --update and --prune"
            )


def afresh(selection: Selection, rows: NDArray[np.int64]) -> Selection:
    """These rows, with a table of their own: what it reads is gone with it, and not in memory for good."""
    return type(selection)(selection.dataset, selection.table.afresh(), rows)


def identity_of(
    selection: Selection,
    modalities: Sequence[str],
    kind: str,
    settings: Mapping[str, object],
    layers: Mapping[str, ExportedLayer],
) -> str:
    """Names what the folder is to hold: the same name, the same bytes."""
    fingerprint = selection.dataset.manifest.fingerprint
    named = [ExportManifest.FORMAT, 1, kind, dict(settings), fingerprint, *modalities]
    if layers:
        named.append({name: layer.digest for name, layer in sorted(layers.items())})
    digest = hashlib.sha256(json.dumps(named).encode())
    for number, part in enumerate(selection.table.parts(selection.rows, ["id"])):
        digest.update(("\n" * bool(number) + "\n".join(part.column("id").to_pylist())).encode())
    return digest.hexdigest()


def pixels_of(chosen: Selection, modalities: Sequence[str]) -> str:
    """Names the payloads of some patches, hex; empty where no checksums of them are known.

    A root that was made again, of the same metadata, has the fingerprint of the one before, and other pixels.
    """
    columns = [layout.checksum_column(name) for name in modalities]
    if not {*columns} <= {*chosen.table.names}:
        return ""
    return _digest(chosen.table.parts(chosen.rows, columns))


def pixels_there(path: Path, there: ExportManifest, modalities: Sequence[str]) -> str:
    """The same of an export that is there and sound, which has these modalities."""
    columns = [layout.checksum_column(name) for name in modalities]
    store = open_store(path)
    if not {*columns} <= {*open_patches(store, there).schema.names}:
        return ""
    return _digest([read_patches(store, there, columns)])


def _digest(parts: Iterable[pa.Table]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        # Row by row, so that it does not depend on the parts.
        columns = [pc.fill_null(column, 0).to_numpy() for column in part.columns]
        digest.update(np.stack(columns, axis=1).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """The payloads of an export: one of each modality of each patch, in the order of their keys."""

    modalities: tuple[Modality, ...]
    """What every patch has."""
    keys: NDArray[np.bytes_]
    """LMDB keys, rising, shape (n,)."""
    code: NDArray[np.uint8]
    """Modality of each, counted in `modalities`, shape (n,)."""
    patch: NDArray[np.int32]
    """Which patch, counted in the order of the table, shape (n,)."""
    xxh3: NDArray[np.uint64] | None
    """Checksum of each payload, shape (n,); None when the dataset has none."""

    def check(self, number: int, payload: Any) -> bool:
        """Whether these bytes are the payload of record `number`."""
        modality = self.modalities[self.code[number]]
        header = modality.payload_header
        return (
            memoryview(payload).nbytes == modality.payload_bytes
            and bytes(payload[: len(header)]) == header
            and (self.xxh3 is None or xxhash.xxh3_64_intdigest(payload) == int(self.xxh3[number]))
        )

    def numbers(self, modality: Modality) -> NDArray[np.int64]:
        """The record of each patch in a modality, shape (num_patches,)."""
        mine = np.flatnonzero(self.code == self.modalities.index(modality))
        found = np.empty_like(mine)
        found[self.patch[mine]] = mine
        return found

    @classmethod
    def of(cls, chosen: Selection, names: Sequence[str]) -> Records:
        """The records of the modalities of these names of a selection."""
        modalities = chosen.dataset.schema.only(names).modalities
        sums = [layout.checksum_column(m.name) for m in modalities]
        known = set(sums) <= set(chosen.table.names)
        columns = [layout.column(m.key_column) for m in modalities]
        wanted = sorted({*columns, *(sums if known else ())})
        count, start = len(chosen), 0
        keys: NDArray[np.bytes_] = np.empty((len(modalities), count), "S64")
        xxh3 = np.empty((len(modalities), count if known else 0), np.uint64)
        for part in chosen.table.parts(chosen.rows, wanted):
            here = slice(start, start + part.num_rows)
            for number, (modality, total) in enumerate(zip(modalities, sums, strict=True)):
                suffix = modality.key_suffix.encode()
                column = part.column(columns[number]).to_pylist()
                texts = np.array([text.encode() + suffix for text in column])
                if texts.itemsize > keys.itemsize:
                    keys = keys.astype(texts.dtype)
                keys[number, here] = texts
                if known:
                    xxh3[number, here] = part.column(total)
            start = here.stop
        order = np.argsort(keys, axis=None, kind="stable")
        keys = keys.reshape(-1)
        keys.sort()  # in place: a hundred megabytes less than taking them in order
        return cls(
            modalities=modalities,
            keys=keys,
            code=(order // count).astype(np.uint8),
            patch=(order % count).astype(np.int32),
            xxh3=xxh3.reshape(-1)[order] if known else None,
        )
