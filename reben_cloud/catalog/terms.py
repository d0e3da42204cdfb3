"""What the catalog's documents have in common: media types, extensions, checksums."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from reben_cloud.about import About

ZARR_TYPE = "application/vnd.zarr; version=3"
PARQUET_TYPE = "application/vnd.apache.parquet"
TAR_TYPE = "application/x-tar"

_VERSIONS = {
    "classification": "2.0.0",
    "datacube": "2.3.0",
    "eo": "2.0.0",
    "file": "2.1.0",
    "grid": "1.1.0",
    "processing": "1.2.0",
    "projection": "2.0.0",
    "raster": "2.0.0",
    "render": "2.0.0",
    "sar": "1.3.0",
    "sat": "1.2.0",
    "scientific": "1.0.0",
    "storage": "2.0.0",
    "table": "1.2.0",
    "version": "1.2.0",
    "zarr": "1.1.0",
}


class Written(Protocol):
    """What is known of an object of a root."""

    @property
    def path(self) -> str:
        """Path below the root."""
        ...

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...

    @property
    def sha256(self) -> str:
        """Hex digest."""
        ...


def extension(name: str) -> str:
    """URL of a STAC extension's schema, in the version used here."""
    return f"https://stac-extensions.github.io/{name}/v{_VERSIONS[name]}/schema.json"


def extensions(names: Iterable[str], facts: About) -> list[str]:
    """URLs of extensions, and of the dataset's own."""
    own = [] if facts.extension is None else [facts.extension]
    return [*map(extension, sorted(names)), *own]


def extensions_of(fields: Iterable[str]) -> set[str]:
    """The extensions that fields such as ``eo:common_name`` are of."""
    return {name.partition(":")[0] for name in fields if ":" in name}


def file_fields(written: Written | None) -> dict[str, Any]:
    """Size and checksum of an asset's object, if they are known."""
    # 1220: multihash prefix of sha2-256 with 32 bytes.
    return {} if written is None else {"file:size": written.nbytes, "file:checksum": f"1220{written.sha256}"}
