"""Where everything is in a root: paths of objects and names of columns. Nothing else spells them."""

from __future__ import annotations

from collections.abc import Iterable

MANIFEST = "manifest.json"
"""The commit point of a root: without it there is no dataset."""

EXPORT_MANIFEST = "export.json"
"""What an export says of itself: the manifest of the root that it came from, and what differs."""

LAYER_MANIFEST = "layer.json"
"""The commit point of a layer, and what it says of itself."""

LAYER_COLLECTION = "collection.json"
"""STAC Collection of a layer by itself."""

OBJECTS = "objects.parquet"
"""List of all objects with their checksums."""

ROWS = "rows.parquet"
"""Table of a layer: of the patches that it has, or of its rows."""

INDEX = "index.parquet"
"""Table of a layer with several rows per patch: which rows are whose."""

PATCHES = "patches.parquet"
"""Table of all patches, a STAC Item per row."""

CATALOG = "catalog.json"
"""STAC Catalog."""

INCOMPLETE = "incomplete.csv"
"""Patches that a build left out since they lack a modality, and what each lacks; only where there are some."""

SHARDS = "shards"
"""Folder of the tar shards."""

JOURNAL = "_build"
"""Folder of the plan, the leases and the receipts of a build; not part of the dataset."""

ZARR_SUFFIX = ".zarr"
"""How the name of a Zarr store's folder ends."""


def collection(collection_id: str) -> str:
    """STAC Collection that every patch and product belongs to, in the folder of its id."""
    return f"{collection_id}/collection.json"


def croissant(collection_id: str) -> str:
    """The dataset as a GeoCroissant card, beside its Collection."""
    return f"{collection_id}/croissant.json"


def shards_id(collection_id: str) -> str:
    """Id of the STAC Collection of the training shards, and its folder."""
    return f"{collection_id}-shards"


def thumbnail(collection_id: str, product: str) -> str:
    """Picture of a product, beside its STAC Item."""
    return f"{collection_id}/{product}/thumbnail.png"


def shards_of(group: str, modality: str) -> str:
    """Folder of the tar shards of a group and modality."""
    return f"{SHARDS}/{group}/{modality}"


def shard(group: str, modality: str, number: int) -> str:
    """Tar shard, e.g. ``shards/train/s2/train-s2-000017.tar``."""
    return f"{shards_of(group, modality)}/{group}-{modality}-{number:06d}.tar"


def zarr_store(product: str) -> str:
    """Folder of a product's Zarr store."""
    return f"zarr/{product}{ZARR_SUFFIX}"


def zarr_shard(product: str, array: str, number: int, *, ndim: int) -> str:
    """Zarr shard of one array, e.g. ``zarr/<product>.zarr/s2_10m/c/0/0/0/0``.

    Args:
        product: The product.
        array: Name of the array in the store.
        number: Number of the Zarr shard, from 0.
        ndim: Number of axes of one patch.
    """
    return f"{zarr_store(product)}/{array}/c/{number}{'/0' * ndim}"


# -- columns of patches.parquet ----------------------------------------------------------------------

PREFIX = "reben:"
"""What the fields of a patch begin with, beside those that STAC defines."""

ID = "id"
DATETIME = "datetime"
BBOX = "bbox"
GEOMETRY = "geometry"
ASSETS = "assets"
LINKS = "links"
LABELS = "reben:labels"
SPLIT = "reben:split"
COUNTRY = "reben:country"
PRODUCT = "reben:product"
S1_DATETIME = "reben:s1_datetime"
ZARR_ROW = "reben:zarr_row"
SHARD_GROUP = "reben:shard_group"
SHARD = "reben:shard"
SHARD_ROW = "reben:shard_row"

STAC = (DATETIME, "platform", "constellation", "grid:code")
"""Metadata whose columns have STAC's own names."""

PLACEMENT = (ZARR_ROW, SHARD_GROUP, SHARD, SHARD_ROW)
"""Columns that say where a patch is in a root."""


_CHECKSUM = "_xxh3"
_OBJECT, _OFFSET, _NBYTES = "_object", "_offset", "_nbytes"


OTHER_NAMES = (f"{PREFIX}s1_name", f"{PREFIX}s2v1_name")
"""Columns of other names by which a patch is known."""


def column(field: str) -> str:
    """Column of a metadata field: ``patch_id`` is the Item's ``id``, some are STAC's, others have the prefix."""
    if field == "patch_id":
        return ID
    return field if field in STAC else f"{PREFIX}{field}"


def field(column: str) -> str:
    """Metadata field of a column, `column` the other way round."""
    return "patch_id" if column == ID else column.removeprefix(PREFIX)


def checksum_column(modality: str) -> str:
    """Column with the xxh3-64 of each patch's payload of a modality."""
    return f"{PREFIX}{modality}{_CHECKSUM}"


def place_columns(modality: str) -> tuple[str, str, str]:
    """Columns of a reference root: number of the object with each payload of a modality, first byte in it, size."""
    return (
        f"{PREFIX}{modality}{_OBJECT}",
        f"{PREFIX}{modality}{_OFFSET}",
        f"{PREFIX}{modality}{_NBYTES}",
    )


def is_checksum_column(name: str) -> bool:
    """Whether a column holds checksums of payloads."""
    return name.startswith(PREFIX) and name.endswith(_CHECKSUM)


def modalities_with_checksums(names: Iterable[str]) -> list[str]:
    """The modalities of whose payloads the columns `names` hold checksums."""
    return [name.removeprefix(PREFIX).removesuffix(_CHECKSUM) for name in names if is_checksum_column(name)]


def present_column(layer: str) -> str:
    """Column that says whether a layer has anything for a patch."""
    return joined_column(layer, "present")


def joined_column(layer: str, name: str) -> str:
    """Column of a table layer, as a column of the patches."""
    return f"{layer}:{name}"
