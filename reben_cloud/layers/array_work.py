"""One array layer in the making: what comes is kept, shards are cut from it, and its tables put last.

Arrays are kept in a scratch folder as they come, one file of fixed-size records. Each shard leaves a receipt, so that
a killed run loses nothing of either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from reben_cloud.build import Progress
from reben_cloud.build.spool import Spool
from reben_cloud.errors import SourceError
from reben_cloud.formats import tar
from reben_cloud.layers import publish
from reben_cloud.layers.describe import fill_payload
from reben_cloud.layers.listing import publish_listed
from reben_cloud.layers.statistics import Moments, counted, is_measured, moments_of, summed, together
from reben_cloud.root import layers, layout
from reben_cloud.root.arrow import bools_array
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.digest import is_intact, sealed
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.layer_manifest import PATCH_ID, LayerManifest
from reben_cloud.root.layers import Layer
from reben_cloud.root.objects import WrittenObject
from reben_cloud.root.patches_file import ROW_GROUP_ROWS
from reben_cloud.schema import Modality, Schema
from reben_cloud.store import Store

Values = Mapping[str, NDArray[Any]] | NDArray[Any]
"""Arrays of a patch by tensor, or the one array of a layer of one tensor."""

Patches = Iterable[tuple[str, Values]]
"""Patch ids and what a layer has for them, in any order."""


def _pair(pair: object, name: str) -> tuple[str, Values]:
    """What was given for a patch, if it is what must be given."""
    if isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str):
        arrays = pair[1].values() if isinstance(pair[1], Mapping) else [pair[1]]
        if all(isinstance(one, np.ndarray) for one in arrays):
            return pair[0], pair[1]
    raise TypeError(
        f"{name}: patches must give pairs of a patch id and a NumPy array, or a dict of them by tensor (of a dict of "
        f"patches, its items()), got {pair!r:.80}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What was written of a shard."""

    number: int
    """Which one."""
    written: WrittenObject
    """The shard."""
    payloads: tuple[int, ...]
    """The xxh3-64 of each payload, in row order."""
    present: tuple[bool, ...]
    """Whether each is more than fill values."""
    moments: Mapping[str, Mapping[str, object]]
    """Tensor -> `Moments` of what is there, as JSON."""

    def to_bytes(self) -> bytes:
        """As it is stored, sealed."""
        return json.dumps(sealed(asdict(self)), separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, text: bytes | memoryview) -> Receipt | None:
        """A stored receipt; None if it is damaged."""
        try:
            value = json.loads(bytes(text))
            if not is_intact(value):
                return None
            return cls(
                number=value["number"],
                written=WrittenObject(**value["written"]),
                payloads=tuple(value["payloads"]),
                present=tuple(value["present"]),
                moments=value["moments"],
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


@dataclass(frozen=True, kw_only=True)
class ArrayWork:
    """One layer in the making."""

    store: Store
    ds: Dataset
    schema: Schema
    title: str
    provenance: Mapping[str, object]
    scratch: Path

    @property
    def modality(self) -> Modality:
        """What the layer holds."""
        return self.schema.modalities[0]

    @cached_property
    def beginning(self) -> Mapping[str, object]:
        """What ``layer.json`` will say, as far as it is known now."""
        return publish.plain(
            {
                "name": self.modality.name,
                "title": self.title,
                "schema": self.schema.to_json(),
                "fingerprint": self.ds.manifest.fingerprint,
                "num_patches": len(self.ids),
                "provenance": dict(self.provenance),
            }
        )

    @cached_property
    def patches(self) -> pa.Table:
        """Id, split and place of every patch, in the order of the root's table."""
        columns = [layout.ID, layout.SPLIT, layout.SHARD_GROUP, layout.SHARD, layout.SHARD_ROW]
        return self.ds.selection.columns(columns)

    @cached_property
    def ids(self) -> list[str]:
        """Id of every patch, in that order."""
        return self.patches.column(layout.ID).to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def shards(self) -> list[tuple[str, int, NDArray[np.int64]]]:
        """(Group, number, row of each of its patches in the table, in the order of the shard) of every shard."""
        group = self.patches.column(layout.SHARD_GROUP).cast(pa.string()).combine_chunks().dictionary_encode()
        names, codes = group.dictionary.to_pylist(), group.indices.to_numpy()
        number = self.patches.column(layout.SHARD).to_numpy()
        row = self.patches.column(layout.SHARD_ROW).to_numpy()
        order = np.lexsort((row, number, codes))
        if isinstance(self.ds.manifest, ExportManifest):
            # It has some rows of each shard of its root: what there is stands in full shards, in the same order.
            rank = np.arange(len(order)) - np.searchsorted(codes[order], codes[order])
            number = np.empty_like(number)
            number[order] = rank // self.ds.manifest.shard_samples
        cuts = np.flatnonzero((np.diff(codes[order]) != 0) | (np.diff(number[order]) != 0)) + 1
        return [(names[codes[part[0]]], int(number[part[0]]), part) for part in np.split(order, cuts)]

    @cached_property
    def spool(self) -> Spool:
        """Arrays that have come and are in no shard yet."""
        name = hashlib.sha256(publish.plan_of(self.beginning) + self.store.url.encode()).hexdigest()[:16]
        return Spool(
            folder=str(self.scratch / f"layer-{name}"),
            num_rows=len(self.ids),
            sizes={self.modality.name: self.modality.payload_bytes},
        )

    # -- reading -----------------------------------------------------------------------------------

    def collect(
        self,
        patches: Patches | Callable[[Sequence[str]], Patches],
        left: Sequence[int],
        *,
        allow_missing: int,
        progress: Progress,
    ) -> None:
        """Keep what comes for patches of the shards that are left."""
        name, modality = self.modality.name, self.modality
        wanted = np.zeros(len(self.ids), np.bool_)
        for number in left:
            wanted[self.shards[number][2]] = True
        wanted &= ~self.spool.held(name)
        row_of = {patch_id: row for row, patch_id in enumerate(self.ids)}
        if callable(patches):
            patches = patches([self.ids[row] for row in np.flatnonzero(wanted).tolist()])
        seen, unknown = np.zeros(len(self.ids), np.bool_), list[str]()
        for pair in progress(patches, int(wanted.sum()), "patches"):
            patch_id, values = _pair(pair, name)
            row = row_of.get(patch_id)
            if row is None:
                unknown.append(str(patch_id))
                if len(unknown) > allow_missing:
                    raise SourceError(
                        f"{name}: {unknown[0]} is no patch of {self.ds.url}, so there is nothing to attach it to"
                        + (f" (nor are {len(unknown) - 1} others)" if len(unknown) > 1 else "")
                        + "; allow_missing (--allow-missing) says how many such ids may be left out"
                    )
                continue
            if seen[row]:
                raise SourceError(f"{name}: {patch_id} comes twice; a patch has its arrays once")
            seen[row] = True
            if wanted[row]:
                tensors = values if isinstance(values, Mapping) else {modality.tensors[0].name: values}
                self.spool.write(name, row, modality.encode(tensors, name=f"{name} of {patch_id}"))

    # -- writing -----------------------------------------------------------------------------------

    def receipt_path(self, number: int) -> str:
        """Where the receipt of a shard lies."""
        return f"{publish.JOURNAL}/{number:06d}.json"

    def read_receipt(self, number: int) -> Receipt | None:
        """The receipt of a shard whose object is there, None if it is not done."""
        try:
            found = Receipt.from_bytes(self.store.get(self.receipt_path(number)))
            if found is None or found.number != number:
                return None
            is_right = hashlib.sha256(self.store.get(found.written.path)).hexdigest() == found.written.sha256
        except FileNotFoundError:
            return None
        return found if is_right else None

    def write_shard(self, number: int) -> Receipt:
        """Write one shard, and what it was."""
        group, shard, rows = self.shards[number]
        modality = self.modality
        fill = fill_payload(modality)
        sums: list[int] = []
        present: list[bool] = []
        moments: list[dict[str, Moments]] = []

        def samples() -> Iterator[tuple[str, bytes, Mapping[str, object]]]:
            for row in rows.tolist():
                payload = self.spool.read(modality.name, row)
                present.append(payload is not None)
                if payload is not None and self._counted[row]:
                    moments.append(moments_of(modality, payload))
                payload = fill if payload is None else payload
                sums.append(xxhash.xxh3_64_intdigest(payload))
                yield self.ids[row], payload, {"patch_id": self.ids[row], "present": present[-1]}

        data = tar.encode_shard(modality, samples(), num_samples=len(rows))
        path = layout.shard(group, modality.name, shard)
        self.store.put(path, data)
        names = [tensor.name for tensor in modality.tensors]
        totals = {name: [part[name] for part in moments if name in part] for name in names}
        receipt = Receipt(
            number=number,
            written=WrittenObject.of(path, data, is_shard=True),
            payloads=tuple(sums),
            present=tuple(present),
            moments={name: together(parts).to_json() for name, parts in totals.items()},
        )
        self.store.put(self.receipt_path(number), receipt.to_bytes())
        return receipt

    @cached_property
    def _counted(self) -> NDArray[np.bool_]:
        return counted(self.patches.column(layout.SPLIT))

    def commit(self, receipts: Sequence[Receipt]) -> Layer:
        """Put both tables and ``layer.json``."""
        count, modality = len(self.ids), self.modality
        sums, present = np.zeros(count, np.uint64), np.zeros(count, np.bool_)
        shard, shard_row = np.zeros(count, np.int32), np.zeros(count, np.int32)
        groups = np.empty(count, object)
        for receipt, (group, number, rows) in zip(receipts, self.shards, strict=True):
            sums[rows], present[rows] = receipt.payloads, receipt.present
            shard[rows], shard_row[rows] = number, np.arange(len(rows))
            groups[rows] = group
        table = pa.table(
            {
                PATCH_ID: pa.array(self.ids),
                layers.PRESENT: bools_array(present),
                layers.XXH3: pa.array(sums),
                layers.GROUP: pa.array(groups.tolist()).dictionary_encode(),
                layers.SHARD: pa.array(shard),
                layers.SHARD_ROW: pa.array(shard_row),
            }
        )
        rows_bytes, seal = publish.encode_table([table], table.schema, row_group_rows=ROW_GROUP_ROWS)
        self.store.put(layout.ROWS, rows_bytes)
        written = [receipt.written for receipt in receipts] + [WrittenObject.of(layout.ROWS, rows_bytes)]
        sizes: dict[str, int] = {}
        for group, _, rows in self.shards:
            sizes[group] = sizes.get(group, 0) + len(rows)
        names = [tensor.name for tensor in modality.tensors if is_measured(tensor)]
        parts = ({n: Moments.from_json(m) for n, m in receipt.moments.items()} for receipt in receipts)
        said = partial(
            LayerManifest.of,
            kind="array",
            name=modality.name,
            title=self.title,
            fingerprint=self.ds.manifest.fingerprint,
            num_patches=count,
            coverage=int(present.sum()),
            num_rows=count,
            rows=seal,
            schema=self.schema,
            group_sizes=sizes,
            shard_samples=max(len(rows) for _, _, rows in self.shards),
            statistics=summed(parts, names),
            provenance=self.provenance,
        )
        return publish_listed(self.store, self.ds, said, rows=table.schema, written=written)
