"""What a root or an export says of itself, compared with what its tables and its list of objects say.

All that can be derived is derived again: counts, names, groups and their sizes, the order in which
patches were put into shards, and the names that stand for all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud.build.plan import fingerprint_of, options_of
from reben_cloud.errors import RebenError, StorageError
from reben_cloud.export.plan import identity_of, layers_of
from reben_cloud.formats import parquet, zarr
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.layout import EXPORT_MANIFEST
from reben_cloud.root.manifest import InvalidManifestError, Manifest
from reben_cloud.root.metadata import described_metadata
from reben_cloud.root.objects import Objects
from reben_cloud.root.placement import PlacementOptions, group_sizes, place

PLACES = (layout.PRODUCT, *layout.PLACEMENT)
"""Columns of the table that follow from the metadata and the options alone (`placement.place`)."""


def check_manifest(dataset: Dataset) -> list[str]:
    """Whether a root's manifest is whole, and still what it was when the dataset was opened."""
    try:
        text = bytes(dataset.store.get(layout.MANIFEST))
        manifest = Manifest.from_bytes(text, where=dataset.url)
    except FileNotFoundError:
        return [f"{layout.MANIFEST}: missing, so nothing is published here"]
    except (InvalidManifestError, RebenError) as error:
        return [f"{layout.MANIFEST}: damaged: {error}"]
    if manifest != dataset.manifest:
        return [f"{layout.MANIFEST}: another one than when the dataset was opened"]
    if manifest.has_digest and text != manifest.to_bytes():
        return [f"{layout.MANIFEST}: says what it must, but not in the bytes that were written"]
    return []


def check_root(dataset: Dataset, objects: Objects) -> list[str]:
    """What a root's manifest and its list of objects say that its table does not.

    Nothing is found when the table is not the listed one: that is for the comparison of checksums to say.
    """
    try:
        data = dataset.store.get(layout.PATCHES)
    except FileNotFoundError:
        return []
    listed = objects.get(layout.PATCHES)
    if listed is None or hashlib.sha256(data).hexdigest() != listed.sha256:
        return []
    try:
        table = parquet.read_table(data, name=layout.PATCHES).sort_by(layout.ID)
        found = [*_counted(dataset.manifest, table), *_placed(dataset.manifest, table, objects)]
    except (pa.ArrowException, KeyError, ValueError) as error:
        return [f"{layout.PATCHES}: does not have what the table of a root has ({error})"]
    return [f"{layout.MANIFEST}: {text}" for text in found]


def check_export(dataset: Dataset, manifest: ExportManifest) -> list[str]:
    """What an export's manifest says that its table does not."""
    countries = [layout.COUNTRY] * bool(manifest.countries)
    columns = [layout.PRODUCT, *countries, layout.SHARD_GROUP]
    found: list[str] = []
    try:
        selection = dataset.selection  # reads the footer
        table = selection.columns(columns)
        groups = _sizes(table.column(layout.SHARD_GROUP))
        layers = layers_of(selection, manifest.modalities)
        identity = identity_of(selection, manifest.modalities, manifest.kind, manifest.settings, layers)
        found += _differing("num_patches", manifest.num_patches, len(selection))
        found += _differing("products", list(manifest.products), _names(table.column(layout.PRODUCT)))
        found += _differing("exported_groups", manifest.exported_groups, groups)
        found += _differing("layers", manifest.layers, layers)
        if countries and not {*_countries(table)} <= {*manifest.countries}:
            found.append("countries does not name all that the table has")
        if identity != manifest.identity:
            found.append("identity is not that of these patches, modalities, settings and this fingerprint")
    except StorageError:
        raise
    except (OSError, pa.ArrowException, KeyError, ValueError, RebenError) as error:
        return [f"{layout.PATCHES}: does not have what the table of an export has ({error})"]
    return [f"{EXPORT_MANIFEST}: {text}" for text in found]


def _counted(manifest: Manifest, table: pa.Table) -> Iterator[str]:
    yield from _differing("num_patches", manifest.num_patches, table.num_rows)
    products = _names(table.column(layout.PRODUCT))
    yield from _differing("products", list(manifest.products), products)
    countries = _countries(table) if layout.COUNTRY in table.column_names else []
    yield from _differing("countries", list(manifest.countries), countries)
    said = list(manifest.modalities)
    there = set(layout.modalities_with_checksums(table.column_names))
    if manifest.references is not None:  # their checksums are recorded on request only
        there = {m for m in said if set(layout.place_columns(m)) <= set(table.column_names)}
    summed = [name for name in said if name in there] + sorted(there.difference(said))
    yield from _differing("modalities", said, summed)


def _placed(manifest: Manifest, table: pa.Table, listed: Objects) -> Iterator[str]:
    """Order, groups, shards, and the fingerprint."""
    names = manifest.metadata_columns
    metadata = described_metadata(table, names)
    options = options_of(manifest)
    if options is not None:
        yield from _ordered(manifest, table, metadata, options)
    if options is not None and manifest.references is None:
        yield from _differing("zarr_shard_patches", manifest.zarr_shard_patches, zarr.PATCHES_PER_ZARR_SHARD)
        shards = {
            layout.shard(group, modality, number)
            for group, size in group_sizes(table).items()
            for modality in manifest.modalities
            for number in range(-(-size // options.shard_samples))
        }
        there = {path for path in listed if path.startswith(f"{layout.SHARDS}/")}
        yield from (
            f"its groups have {path}, which {layout.OBJECTS} does not" for path in sorted(shards - there)
        )
        yield from (
            f"its groups do not have {path}, which {layout.OBJECTS} has" for path in sorted(there - shards)
        )
    # The first version's fingerprints follow from a library's bytes, which may not be had again.
    if manifest.has_digest:
        expected = fingerprint_of(metadata.select(names), manifest.schema, options)
        yield from _differing("fingerprint", manifest.fingerprint, expected)


def _ordered(
    manifest: Manifest, table: pa.Table, metadata: pa.Table, options: PlacementOptions
) -> Iterator[str]:
    sizes = {name: group.num_samples for name, group in manifest.groups.items()}
    yield from _differing("groups", sizes, dict(group_sizes(table)))
    without = manifest.schema.recommended_without
    # As a build sorts them; only where ids begin with the product's name is that their own order.
    by_product = np.lexsort(
        (np.arange(table.num_rows), table.column(layout.PRODUCT).cast(pa.string()).to_numpy())
    )
    table, metadata = (one.take(pa.array(by_product)) for one in (table, metadata))
    expected = place(metadata, options, recommended_without=without)
    for name in PLACES:
        if name == layout.ZARR_ROW and manifest.references is not None:
            continue
        if not np.array_equal(_plain(expected.column(name)), _plain(table.column(name))):
            order = f"{options.order}, seed {options.seed}, {options.shard_samples} samples in a shard"
            yield f"order: {name} of {layout.PATCHES} does not follow from it ({order})"
            return


def _differing(key: str, said: Any, derived: Any) -> Iterator[str]:
    if said != derived:
        yield f"{key} is {said!r:.200}, and {derived!r:.200} by the table"


def _countries(table: pa.Table) -> list[str]:
    """The names in the table; a patch that is in no country has an empty one."""
    return [name for name in _names(table.column(layout.COUNTRY)) if name]


def _names(column: Any) -> list[str]:
    return sorted(pc.unique(column.cast(pa.string())).to_pylist())


def _sizes(column: Any) -> dict[str, int]:
    counts = pc.value_counts(column.cast(pa.string())).to_pylist()
    return {one["values"]: one["counts"] for one in counts}


def _plain(column: Any) -> Any:
    return column.cast(pa.string()).to_numpy() if pa.types.is_dictionary(column.type) else column.to_numpy()
