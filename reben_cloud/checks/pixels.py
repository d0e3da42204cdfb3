"""The Zarr stores and the tar shards of a root, decoded and compared with its table, hence with each other."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.checks.index import PatchIndex
from reben_cloud.checks.objects import Check
from reben_cloud.errors import (
    ChecksumError,
    InvalidPatchError,
    NotFoundError,
    StorageError,
    UnreachableError,
)
from reben_cloud.formats import tar, zarr
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.metadata import sample_json
from reben_cloud.schema import Modality


def zarr_checks(dataset: Dataset, index: PatchIndex) -> list[Check]:
    """Checks that read every product's Zarr store: its metadata, and each Zarr shard of its arrays."""
    checks: list[Check] = []
    for product in np.unique(index.product).tolist():
        rows = np.flatnonzero(index.product == product)
        rows = rows[np.argsort(index.zarr_row[rows])]
        checks.append(_StoreCheck(dataset, index, product, rows))
        for number in range(zarr.num_zarr_shards(len(rows))):
            part = slice(number * zarr.PATCHES_PER_ZARR_SHARD, (number + 1) * zarr.PATCHES_PER_ZARR_SHARD)
            checks.append(_ZarrShardCheck(dataset, index, product, number, rows[part]))
    return checks


@dataclass(frozen=True, slots=True)
class _StoreCheck:
    """Open a product's store as users do, and compare names and labels."""

    dataset: Dataset
    index: PatchIndex
    product: str
    rows: NDArray[np.int64]

    def __call__(self) -> list[str]:
        where = layout.zarr_store(self.product)
        try:
            stack = self.dataset.open_zarr(self.product)
            ids = [str(name) for name in stack.patch_id.values]
            hot = stack.labels.values.astype(bool)
            names = [str(name) for name in stack.label.values]
        except UnreachableError:
            raise
        except (
            FileNotFoundError,
            NotFoundError,
            StorageError,
            ValueError,
            KeyError,
            AttributeError,
        ) as error:
            return [f"{where}: cannot be opened ({str(error).splitlines()[0] if str(error) else error!r})"]
        expected = [self.index.ids[row] for row in self.rows]
        if ids != expected:
            return [f"{where}: its patch_id array is not what {layout.PATCHES} says"]
        labels = [row["labels"] for row in self.index.rows(self.rows)]
        return [
            f"{where}: the labels of {patch_id} are not what {layout.PATCHES} says"
            for patch_id, got, want in zip(ids, hot, labels, strict=True)
            if sorted(n for n, on in zip(names, got, strict=True) if on) != sorted(want)
        ]


@dataclass(frozen=True, slots=True)
class _ZarrShardCheck:
    """Decode one Zarr shard of every array and rebuild the payloads."""

    dataset: Dataset
    index: PatchIndex
    product: str
    number: int
    rows: NDArray[np.int64]

    def __call__(self) -> list[str]:
        problems: list[str] = []
        where = layout.zarr_store(self.product)
        for modality in self.index.modalities:
            stacks, faults = self._decode(modality)
            problems += faults
            if faults:
                continue
            for position, row in enumerate(self.rows.tolist()):
                payload = modality.unstack({name: stack[position] for name, stack in stacks.items()})
                problems += self.index.compare(
                    modality, row, payload, f"{where} row {self.index.zarr_row[row]}"
                )
        return problems

    def _decode(self, modality: Modality) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Batch array -> its values, (n, *shape of a patch), and what is wrong with the Zarr shards."""
        stacks: dict[str, NDArray[Any]] = {}
        faults: list[str] = []
        wanted = np.arange(len(self.rows))
        for array, stored in zip(modality.arrays, zarr.pixel_arrays(modality), strict=True):
            path = layout.zarr_shard(self.product, stored.name, self.number, ndim=len(stored.shape))
            try:
                stacks[array.name] = zarr.decode_shard(
                    stored, self.dataset.store.get(path), rows=wanted, name=path
                )
            except FileNotFoundError:
                faults.append(f"{path}: missing")
            except ChecksumError as error:
                faults.append(str(error))  # names the object already
            except UnreachableError:
                raise
            except (StorageError, ValueError, RuntimeError) as error:
                faults.append(f"{path}: {error}")
        return stacks, faults


def shard_checks(dataset: Dataset, index: PatchIndex) -> list[Check]:
    """Checks that read every tar shard."""
    order = np.lexsort((index.shard_row, index.shard, index.group))
    cuts = (
        np.flatnonzero((index.group[order][1:] != index.group[order][:-1]) | np.diff(index.shard[order])) + 1
    )
    return [
        _ShardCheck(dataset, index, modality, rows)
        for rows in np.split(order, cuts)
        for modality in index.modalities
    ]


@dataclass(frozen=True, slots=True)
class _ShardCheck:
    """Read one tar shard: members, names, payloads, metadata."""

    dataset: Dataset
    index: PatchIndex
    modality: Modality
    rows: NDArray[np.int64]

    def __call__(self) -> list[str]:
        index, first = self.index, int(self.rows[0])
        path = layout.shard(str(index.group[first]), self.modality.name, int(index.shard[first]))
        try:
            samples = tar.iter_samples(self.modality, self.dataset.store.get(path))
        except FileNotFoundError:
            return [f"{path}: missing"]
        except UnreachableError:
            raise
        except (tarfile.TarError, InvalidPatchError, StorageError, ValueError) as error:
            return [f"{path}: {error}"]
        if len(samples) != len(self.rows):
            return [f"{path}: {len(samples)} samples, must be {len(self.rows)}"]
        problems = []
        texts = sample_json(index.metadata.take(pa.array(self.rows)), self.dataset.schema)
        for (patch_id, payload, text), row, expected in zip(samples, self.rows.tolist(), texts, strict=True):
            where = f"{path} row {index.shard_row[row]}"
            if patch_id != index.ids[row]:
                problems.append(f"{where}: is {patch_id}, must be {index.ids[row]}")
            elif text != expected:
                problems.append(f"{where}: the metadata of {patch_id} is not what {layout.PATCHES} says")
            problems += index.compare(self.modality, row, payload, where)
        return problems
