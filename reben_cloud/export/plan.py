"""What an export is to hold: its patches, modalities and records, and the name of all that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from reben_cloud.bands import MODALITIES
from reben_cloud.errors import ConflictError
from reben_cloud.patch import PAYLOAD_BYTES, PAYLOAD_HEADER

if TYPE_CHECKING:
    from reben_cloud.search import Selection

MANIFEST = "export.json"
"""What the folder says of itself; written last."""

FORMAT = "reben_cloud export"
"""Names that document."""

PATCHES_AT_ONCE = 16_384
"""Rows that become Python objects at a time."""


def modalities_of(selection: Selection, asked: Sequence[str] | None) -> tuple[str, ...]:
    """What to export of what the dataset has.

    Raises:
        ValueError: If a modality is not there, or none is.
    """
    dataset = selection.dataset
    there = dataset.modalities
    for modality in asked or ():
        if modality not in there:
            raise ValueError(
                f"modality {modality!r} is not in {dataset.url}, which has {', '.join(there) or 'none'}"
            )
    if not there:
        raise ValueError(f"{dataset.url} is a catalog of metadata alone and has no pixels to export")
    return tuple(m for m in MODALITIES if m in (asked or there))


def existing(path: Path, selection: Selection, kind: str) -> dict[str, Any] | None:
    """The manifest of the export at `path`; None when nothing is there.

    Raises:
        ConflictError: If something else is there.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    try:
        found: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise ConflictError(f"{path} exists and is no export; name a folder that does not exist") from None
    if found.get("format") != FORMAT or found.get("kind") != kind:
        raise ConflictError(
            f"{path} is an export of another kind ({found.get('kind')}, not {kind}); name another folder"
        )
    if found["fingerprint"] != selection.dataset.manifest["fingerprint"]:
        raise ConflictError(
            f"{path} is an export of another root (fingerprint {found['fingerprint']}); name another folder"
        )
    return found


def reconcile(
    selection: Selection,
    modalities: tuple[str, ...],
    path: Path,
    there: Mapping[str, Any] | None,
    *,
    update: bool,
    prune: bool,
) -> tuple[Selection, tuple[str, ...]]:
    """The patches, in the order of the table, and modalities that the folder is to hold.

    Raises:
        ConflictError: If the export that is to change does not say what it holds, or holds what the root lacks.
    """
    rows = np.unique(selection.rows)
    if there is not None and update != prune:
        try:
            ids = pq.read_table(path / "patches.parquet", columns=["id"]).column("id").to_pylist()
        except (OSError, ValueError) as error:
            raise ConflictError(
                f"{path} is damaged: patches.parquet cannot be read ({error}), so nothing says what it holds; "
                "select all that it is to hold and give both --update and --prune"
            ) from error
        old = selection.dataset.search(ids=ids).rows
        if update and len(old) < len(ids):
            raise ConflictError(
                f"{path} has {len(ids) - len(old):,} patches that {selection.dataset.url} lacks; "
                "update it from the whole root"
            )
        rows = np.union1d(old, rows) if update else np.intersect1d(old, rows)
        both = {*there["modalities"], *modalities} if update else {*there["modalities"]} & {*modalities}
        modalities = tuple(m for m in MODALITIES if m in both)
    return afresh(selection, rows), modalities


def afresh(selection: Selection, rows: NDArray[np.int64]) -> Selection:
    """These rows, with a table of their own: what it reads is gone with it, and not in memory for good."""
    return type(selection)(selection.dataset, type(selection.table)(selection.table.store), rows)


def identity_of(
    selection: Selection, modalities: Sequence[str], kind: str, settings: Mapping[str, Any]
) -> str:
    """Names what the folder is to hold: the same name, the same bytes."""
    fingerprint = selection.dataset.manifest["fingerprint"]
    digest = hashlib.sha256(json.dumps([FORMAT, 1, kind, dict(settings), fingerprint, *modalities]).encode())
    ids = selection.column("id")
    for start in range(0, len(ids), PATCHES_AT_ONCE):
        text = "\n".join(ids.slice(start, PATCHES_AT_ONCE).to_pylist())
        digest.update(("\n" + text if start else text).encode())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """The payloads of an export: one of each modality of each patch, in the order of their keys."""

    modalities: tuple[str, ...]
    """What every patch has."""
    keys: NDArray[np.bytes_]
    """LMDB keys, rising, shape (n,)."""
    modality: NDArray[np.str_]
    """Modality of each, shape (n,)."""
    patch: NDArray[np.int64]
    """Which patch, counted in the order of the table, shape (n,)."""
    xxh3: NDArray[np.uint64] | None
    """Checksum of each payload, shape (n,); None when the dataset has none."""

    def check(self, number: int, payload: Any) -> bool:
        """Whether these bytes are the payload of record `number`."""
        modality = self.modality[number]
        header = PAYLOAD_HEADER[modality]
        return (
            memoryview(payload).nbytes == PAYLOAD_BYTES[modality]
            and bytes(payload[: len(header)]) == header
            and (self.xxh3 is None or xxhash.xxh3_64_intdigest(payload) == int(self.xxh3[number]))
        )

    def numbers(self, modality: str) -> NDArray[np.int64]:
        """The record of each patch in a modality, shape (num_patches,)."""
        mine = np.flatnonzero(self.modality == modality)
        found = np.empty_like(mine)
        found[self.patch[mine]] = mine
        return found

    @classmethod
    def of(cls, chosen: Selection, modalities: tuple[str, ...]) -> Records:
        """The records of a selection."""
        sums = [f"reben:{m}_xxh3" for m in modalities]
        known = set(sums) <= set(chosen.table.names)
        columns = {"s2": ("id", b""), "s1": ("reben:s1_name", b""), "map": ("id", b"_reference_map")}
        table = chosen.columns(sorted({columns[m][0] for m in modalities} | set(sums if known else ())))
        count = len(chosen)
        width = max(
            int(pc.max(pc.binary_length(table.column(name))).as_py() or 0) + len(suffix)
            for name, suffix in (columns[m] for m in modalities)
        )
        keys = np.empty(count * len(modalities), f"S{width}")
        for number, modality in enumerate(modalities):
            name, suffix = columns[modality]
            for start in range(0, count, PATCHES_AT_ONCE):
                texts = table.column(name).slice(start, PATCHES_AT_ONCE).to_pylist()
                first = number * count + start
                keys[first : first + len(texts)] = [text.encode() + suffix for text in texts]
        order = np.argsort(keys, kind="stable")
        return cls(
            modalities=modalities,
            keys=keys[order],
            modality=np.array(modalities)[order // count],
            patch=order % count,
            xxh3=np.concatenate([table.column(c).to_numpy() for c in sums])[order] if known else None,
        )
