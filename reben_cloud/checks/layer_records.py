"""The records of an array layer: every shard decoded, each payload as the table has it, and the statistics of all."""

from __future__ import annotations

import math
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from reben_cloud.checks.layer_tables import LayerRows, differing, shards_of
from reben_cloud.checks.objects import Check
from reben_cloud.errors import InvalidPatchError, StorageError, UnreachableError
from reben_cloud.formats import tar
from reben_cloud.layers.describe import fill_payload
from reben_cloud.layers.statistics import Moments, is_measured, moments_of, summed, together
from reben_cloud.root import layout
from reben_cloud.root.arrow import mask_of
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.layers import Layer
from reben_cloud.schema import Modality


def record_checks(
    layer: Layer, modality: Modality, rows: LayerRows, root: Dataset | None
) -> dict[str, list[Check]]:
    """Checks that decode every shard, and then the one of the statistics that they give."""
    assert rows.places is not None
    measured = _Measured(None if root is None else _in_statistics(rows, root))
    records: list[Check] = [
        _ShardCheck(layer, modality, rows, number, layout.shard(group, modality.name, shard), mine, measured)
        for number, ((group, shard), mine) in enumerate(shards_of(rows.places).items())
    ]
    checks = {"records": records}
    if measured.counts is not None:
        checks["statistics"] = [_StatisticsCheck(layer, modality, measured, len(records))]
    return checks


@dataclass(frozen=True)
class _Measured:
    """Moments of the patches for training, as shards are read."""

    counts: NDArray[np.bool_] | None
    """Whether each row of the table counts; None where no root says so, or not all of it."""
    found: dict[int, Mapping[str, Moments]] = field(default_factory=dict)
    """Number of the shard's check -> moments by tensor."""


def _in_statistics(rows: LayerRows, root: Dataset) -> NDArray[np.bool_] | None:
    """Whether each patch counts in the statistics: those for training, or all where none is."""
    if isinstance(root.manifest, ExportManifest):
        return None
    table = root.selection.columns([layout.ID, layout.SPLIT])
    training = table.filter(pc.equal(table.column(layout.SPLIT).cast(pa.string()), "train")).column(layout.ID)
    found = mask_of(pc.is_in(rows.ids, value_set=training.combine_chunks()))
    return found if found.any() else np.ones(len(found), np.bool_)


@dataclass(frozen=True, slots=True)
class _ShardCheck:
    """Read one shard: members, names, payloads, what is said of each."""

    layer: Layer
    modality: Modality
    rows: LayerRows
    number: int
    path: str
    mine: NDArray[np.int64]
    measured: _Measured

    def __call__(self) -> list[str]:
        try:
            samples = tar.iter_samples(self.modality, self.layer.store.get(self.path))
        except FileNotFoundError:
            return [f"{self.path}: missing"]
        except UnreachableError:
            raise
        except (tarfile.TarError, InvalidPatchError, StorageError, ValueError) as error:
            return [f"{self.path}: {error}"]
        if len(samples) != len(self.mine):
            return [f"{self.path}: {len(samples)} samples, must be {len(self.mine)}"]
        assert self.rows.places is not None
        ids = self.rows.ids.take(pa.array(self.mine)).to_pylist()
        fill, problems = fill_payload(self.modality), []
        moments: dict[str, list[Moments]] = {}
        for number, (patch_id, payload, text) in enumerate(samples):
            row, where = int(self.mine[number]), f"{self.path} row {number}"
            present = bool(self.rows.places.present[row])
            if patch_id != ids[number]:
                problems.append(f"{where}: is {patch_id}, must be {ids[number]}")
            elif text != {"patch_id": patch_id, "present": present}:
                problems.append(f"{where}: what is said of {patch_id} is not what {layout.ROWS} says")
            elif xxhash.xxh3_64_intdigest(payload) != int(self.rows.places.xxh3[row]):
                problems.append(f"{where}: the record of {patch_id} is not the one that {layout.ROWS} names")
            elif not present and payload != fill:
                problems.append(f"{where}: {patch_id} is said to be lacking, and its record holds something")
            elif present and self.measured.counts is not None and self.measured.counts[row]:
                for name, one in moments_of(self.modality, payload).items():
                    moments.setdefault(name, []).append(one)
        if not problems:
            self.measured.found[self.number] = {name: together(parts) for name, parts in moments.items()}
        return problems


@dataclass(frozen=True, slots=True)
class _StatisticsCheck:
    """Compare the statistics with those of the records, once all are read."""

    layer: Layer
    modality: Modality
    measured: _Measured
    num_shards: int

    def __call__(self) -> list[str]:
        if len(self.measured.found) < self.num_shards:
            return []  # a shard is damaged, which was said
        parts = (self.measured.found[number] for number in range(self.num_shards))
        derived = summed(parts, [t.name for t in self.modality.tensors if is_measured(t)])
        said = self.layer.manifest.statistics
        problems = list(differing(f"{layout.LAYER_MANIFEST}: statistics", sorted(said), sorted(derived)))
        for name in derived.keys() & said.keys():
            for key, value in derived[name].items():
                given = said[name].get(key, math.nan)
                # Sums of floats, which another release of NumPy may add in another order.
                if not math.isclose(given, value, rel_tol=1e-6, abs_tol=1e-9):
                    problems.append(
                        f"{layout.LAYER_MANIFEST}: {key} of {name} is {given:g}, and {value:g} by the records"
                    )
        return problems
