"""`LayerManifest`: what a layer says of itself (``layer.json``), as a frozen value that is read with distrust."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

from reben_cloud.formats.parquet import Seal
from reben_cloud.root.digest import sealed
from reben_cloud.root.manifest_checks import InvalidManifestError, is_hex, is_int
from reben_cloud.root.sealed import SealedDocument
from reben_cloud.schema import Schema
from reben_cloud.schema.arrays import NAME

LAYER_VERSION = 1
"""Version of a layer's layout; readers refuse a higher one."""

Kind = Literal["array", "one", "many"]
"""``array``: tensors of every patch, in shards; ``one``: a table with a row per patch; ``many``: with any number."""

PATCH_ID = "patch_id"
"""Column of a layer's tables with the ids of patches."""

RESERVED_NAMES = frozenset(
    {"reben", "grid", "proj", "eo", "sar", "sat", "table", "labels", "index", "valid"}
    | {"zarr", "root", "patches", "croissant"}
)
"""Names that no layer has: its columns would look like those of a root or of STAC's extensions, its assets like a
root's."""


_KEYS = {
    "kind", "name", "title", "fingerprint", "num_patches", "coverage", "num_rows", "schema", "groups",
    "shard_samples", "statistics", "provenance", "rows_parquet", "index_parquet", "objects_sha256", "digest",
}  # fmt: skip


class LayerManifest(SealedDocument):
    """What a layer says of itself. Attributes have types; each key of the document can be asked for as well."""

    FORMAT: ClassVar[str] = "reben_cloud layer"
    VERSION: ClassVar[int] = LAYER_VERSION

    @classmethod
    def of(
        cls,
        *,
        kind: Kind,
        name: str,
        fingerprint: str,
        num_patches: int,
        coverage: int,
        num_rows: int,
        rows: Seal,
        schema: Schema | None = None,
        index: Seal | None = None,
        group_sizes: Mapping[str, int] | None = None,
        shard_samples: int = 0,
        statistics: Mapping[str, Any] | None = None,
        title: str = "",
        provenance: Mapping[str, Any] | None = None,
        objects_sha256: str | None = None,
    ) -> LayerManifest:
        """What a layer of this version is to say of itself; see the attributes."""
        document = {
            "format": cls.FORMAT,
            "version": LAYER_VERSION,
            "kind": kind,
            "name": name,
            "title": title,
            "fingerprint": fingerprint,
            "num_patches": num_patches,
            "coverage": coverage,
            "num_rows": num_rows,
            "schema": None if schema is None else schema.to_json(),
            "groups": dict(group_sizes or {}),
            "shard_samples": shard_samples,
            "statistics": dict(statistics or {}),
            "provenance": dict(provenance or {}),
            "rows_parquet": rows.to_json(),
            "index_parquet": None if index is None else index.to_json(),
            "objects_sha256": objects_sha256,
        }
        return cls(sealed(document))

    @property
    def kind(self) -> Kind:
        """What kind of layer it is."""
        kind: Kind = self._document["kind"]
        return kind

    @property
    def name(self) -> str:
        """Name of the layer: of its modality, or what its columns begin with."""
        return str(self._document["name"])

    @property
    def title(self) -> str:
        """What it is, for people."""
        return str(self._document["title"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the root that it was made for: 16 hex digits."""
        return str(self._document["fingerprint"])

    @property
    def num_patches(self) -> int:
        """Patches of that root."""
        return int(self._document["num_patches"])

    @property
    def coverage(self) -> int:
        """Patches that it has anything for, at most `num_patches`."""
        return int(self._document["coverage"])

    @property
    def num_rows(self) -> int:
        """Rows of ``rows.parquet``: one per patch of the root in an array layer."""
        return int(self._document["num_rows"])

    @cached_property
    def schema(self) -> Schema | None:
        """The one modality of an array layer, with the classes and the size of the root's patches; else None."""
        value = self._document["schema"]
        return None if value is None else Schema.from_json(value)

    @property
    def groups(self) -> dict[str, int]:
        """Samples in each group of shards, of an array layer."""
        return dict(self._document["groups"])

    def samples_in(self, group: str, number: int) -> int:
        """Samples in a shard; 0 where there is no such shard."""
        full = int(self._document["shard_samples"])
        return max(0, min(full, self.groups.get(group, 0) - number * full)) if number >= 0 else 0

    @property
    def statistics(self) -> dict[str, dict[str, float]]:
        """Tensor, or numeric column -> ``mean``, ``std``, ``min``, ``max``, ``count`` of what is there."""
        return self.to_json()["statistics"]  # type: ignore[no-any-return]

    @property
    def provenance(self) -> dict[str, Any]:
        """What it was made from, and how, for people."""
        return self.to_json()["provenance"]  # type: ignore[no-any-return]

    @property
    def rows_parquet(self) -> Seal:
        """What vouches for ``rows.parquet``."""
        return Seal.from_json(self._document["rows_parquet"])

    @property
    def index_parquet(self) -> Seal | None:
        """What vouches for ``index.parquet``; None where a patch has one row."""
        value = self._document["index_parquet"]
        return None if value is None else Seal.from_json(value)

    @property
    def objects_sha256(self) -> str | None:
        """The sha256 of the list of objects, hex; None for a table of earlier writers, whose objects are sealed."""
        return self._document["objects_sha256"]  # type: ignore[no-any-return]

    @property
    def digest(self) -> str:
        """Digest of the document, which names all that the layer holds: hex."""
        return str(self._document["digest"])

    def _check(self) -> None:
        document = self._document
        if not is_int(document.get("version"), 1):
            raise InvalidManifestError(f"its version is {document.get('version')!r}")
        lacking = _KEYS - document.keys()
        if lacking:
            raise InvalidManifestError(f"it has no {min(lacking)}")
        is_array = document["kind"] == "array"
        for key, wrong in {
            "kind": document["kind"] not in get_args(Kind),
            "name": not is_layer_name(document["name"]),
            "title": not isinstance(document["title"], str),
            "fingerprint": not is_hex(document["fingerprint"], 16),
            "num_patches": not is_int(document["num_patches"], 1),
            "num_rows": not is_int(document["num_rows"], 0),
            "groups": not _are_sizes(document["groups"]),
            "shard_samples": not is_int(document["shard_samples"], int(is_array)),
            "statistics": not _are_statistics(document["statistics"]),
            "provenance": not isinstance(document["provenance"], dict),
            "schema": (document["schema"] is not None) != is_array,
            "index_parquet": (document["index_parquet"] is not None) != (document["kind"] == "many"),
            "objects_sha256": (document["objects_sha256"] is not None or is_array)
            and not is_hex(document["objects_sha256"], 64),
        }.items():
            if wrong:
                raise InvalidManifestError(f"its {key} cannot be {document[key]!r:.80}")
        if is_array and document["num_rows"] != document["num_patches"]:
            raise InvalidManifestError(
                f"its num_rows and num_patches cannot be {document['num_rows']:,} and {document['num_patches']:,}, an "
                "array layer has a row for every patch"
            )
        if not is_int(document["coverage"], 0) or document["coverage"] > document["num_patches"]:
            raise InvalidManifestError(f"its coverage cannot be {document['coverage']!r:.80}")
        try:
            _ = self.rows_parquet, self.index_parquet
            schema = self.schema
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidManifestError(
                f"its schema or what vouches for its tables is not valid: {error}"
            ) from error
        if schema is not None and schema.modality_names != (document["name"],):
            raise InvalidManifestError(f"its schema has {', '.join(schema.modality_names) or 'nothing'}")


def is_layer_name(value: object) -> bool:
    """Whether a value can name a layer: small letters, digits and underscores, and no name of ours."""
    return isinstance(value, str) and NAME.fullmatch(value) is not None and value not in RESERVED_NAMES


def _are_sizes(value: object) -> bool:
    return isinstance(value, dict) and all(is_int(size, 1) for size in value.values())


def _are_statistics(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(one, dict) and all(type(number) in (int, float) for number in one.values())
        for one in value.values()
    )
