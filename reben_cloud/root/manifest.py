"""`Manifest`: what a root says of itself (``manifest.json``), as a frozen value that is read with distrust.

A document is written sealed with its own digest, and each key that a reader uses is checked
(`root.manifest_checks`). The first version's documents have no digest; they are known by having
exactly that version's keys. What an export says of itself is the same and more: `root.exported`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from reben_cloud.bigearthnet.official import OFFICIAL_SCHEMA
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.formats.parquet import Seal
from reben_cloud.root.digest import sealed
from reben_cloud.root.manifest_checks import FORMAT_VERSION as FORMAT_VERSION
from reben_cloud.root.manifest_checks import InvalidManifestError as InvalidManifestError
from reben_cloud.root.manifest_checks import (
    check_entries,
    check_groups,
    references_of,
    schema_of,
)
from reben_cloud.root.references import RemoteObject
from reben_cloud.root.sealed import SealedDocument
from reben_cloud.schema import Schema


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A group of shards."""

    num_samples: int
    """Samples in all of its shards."""
    num_shards: int
    """Shards of each modality."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardOrder:
    """How the patches were put into the shards."""

    kind: str
    """Name of the order; ``none`` for a root without shards."""
    seed: int
    """Seed of the order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Patches that a build left out since they lack a modality; all of them are in ``incomplete.csv``."""

    num_patches: int
    """How many."""
    first: tuple[str, ...]
    """Ids of the first of them, sorted."""

    def to_json(self) -> dict[str, object]:
        """As a manifest has it."""
        return {"num_patches": self.num_patches, "first": list(self.first)}


@dataclass(frozen=True, eq=False, repr=False)
class Manifest(SealedDocument):
    """What a root says of itself.

    Attributes have types; each key of the document can be asked for as well, such as
    ``manifest["groups"]["train"]["num_samples"]``.
    """

    FORMAT: ClassVar[str] = "reben_cloud root"
    VERSION: ClassVar[int] = FORMAT_VERSION

    @classmethod
    def of(
        cls,
        *,
        created_from: str,
        schema: Schema,
        metadata_columns: Sequence[str],
        num_patches: int,
        products: Sequence[str],
        countries: Sequence[str],
        fingerprint: str,
        group_sizes: Mapping[str, int] | None = None,
        shard_samples: int = 0,
        zarr_shard_patches: int = 0,
        order: ShardOrder | None = None,
        incomplete: LeftOut | None = None,
    ) -> Manifest:
        """What a root of this version is to say of itself, but for the checksums of its tables; see the attributes.

        A root of metadata alone has no groups, sizes and order.
        """
        order = order or ShardOrder(kind="none", seed=0)
        sizes = {"shard_samples": shard_samples, "zarr_shard_patches": zarr_shard_patches}
        document = {
            "format": Manifest.FORMAT,
            "version": FORMAT_VERSION,
            "created_from": created_from,
            "modalities": list(schema.modality_names),
            "metadata": list(metadata_columns),
            "schema": schema.to_json(),
            "num_patches": num_patches,
            "products": list(products),
            "groups": {
                name: {"num_samples": size, "num_shards": -(-size // shard_samples)}
                for name, size in (group_sizes or {}).items()
            },
            **(sizes if group_sizes else {}),
            "countries": list(countries),
            "order": {"kind": order.kind, "seed": order.seed},
            "fingerprint": fingerprint,
            **({"incomplete": incomplete.to_json()} if incomplete else {}),
        }
        return Manifest(sealed(document))

    def vouching_for(self, *, patches: Seal, objects_sha256: str) -> Manifest:
        """The same with the checksums of both tables, as it is stored."""
        sums = {"patches_parquet": patches.to_json(), "objects_sha256": objects_sha256}
        return Manifest(sealed({**self._document, **sums}))

    def referring_to(self, objects: Sequence[RemoteObject]) -> Manifest:
        """The same of a root whose payloads lie in these objects of others."""
        return Manifest(sealed({**self._document, "references": [one.to_json() for one in objects]}))

    # -- what it says ------------------------------------------------------------------------------

    @property
    def created_from(self) -> str:
        """What kind of source it was made from."""
        return str(self._document["created_from"])

    @property
    def num_patches(self) -> int:
        """Number of patches, at least 1."""
        return int(self._document["num_patches"])

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of what every patch has, in the order of the schema; none for metadata alone."""
        return tuple(self._document["modalities"])

    @cached_property
    def schema(self) -> Schema:
        """What every patch has: modalities, classes, size."""
        return schema_of(self._document)

    @property
    def metadata_columns(self) -> list[str]:
        """Names of the metadata columns of which the root was made, in order."""
        return list(self._document.get("metadata", OFFICIAL_SCHEMA.names))

    @property
    def products(self) -> tuple[str, ...]:
        """Names of the products, sorted."""
        return tuple(self._document["products"])

    @property
    def countries(self) -> tuple[str, ...]:
        """Names of the countries of the patches, sorted."""
        return tuple(self._document["countries"])

    @property
    def groups(self) -> dict[str, Group]:
        """The groups of shards by name; an export has those of its root, from which the order follows."""
        return {
            name: Group(num_samples=group["num_samples"], num_shards=group["num_shards"])
            for name, group in self._document["groups"].items()
        }

    @property
    def shard_samples(self) -> int:
        """Samples in a shard, but for the last of its group; 0 without shards."""
        return int(self._document.get("shard_samples", 0))

    @property
    def zarr_shard_patches(self) -> int:
        """Patches in a Zarr shard; 0 without Zarr stores."""
        return int(self._document.get("zarr_shard_patches", 0))

    @property
    def order(self) -> ShardOrder:
        """How the patches were put into the shards."""
        order = self._document["order"]
        return ShardOrder(kind=order["kind"], seed=order["seed"])

    @property
    def incomplete(self) -> LeftOut | None:
        """The patches of its source that were left out since they lack a modality; None if none was."""
        value = self._document.get("incomplete")
        return (
            None if value is None else LeftOut(num_patches=value["num_patches"], first=tuple(value["first"]))
        )

    @cached_property
    def references(self) -> tuple[RemoteObject, ...] | None:
        """The objects of others that the payloads lie in; None for a root that has them itself."""
        return references_of(self._document)

    @property
    def fingerprint(self) -> str:
        """Names the patches, the schema and the order: 16 hex digits."""
        return str(self._document["fingerprint"])

    @property
    def patches_parquet(self) -> Seal | None:
        """What vouches for the table of patches; None from the first version, and before anything is stored."""
        value = self._document.get("patches_parquet")
        return None if value is None else Seal.from_json(value)

    @property
    def objects_sha256(self) -> str | None:
        """The sha256 of the list of objects, hex; None before a root is published, and where there is no list."""
        return self._document.get("objects_sha256")

    # -- checks ------------------------------------------------------------------------------------

    def _check(self) -> None:
        check_entries(self._document)
        if not self.modalities:
            if self._document["groups"]:
                raise InvalidManifestError("it has groups of shards, and no modality that would be in them")
            return
        total = check_groups(self._document)
        if total != self.num_patches:
            raise InvalidManifestError(
                f"its groups have {total:,} samples and it has {self.num_patches:,} patches"
            )

    def _check_stored(self) -> None:
        if self.objects_sha256 is None:
            raise InvalidManifestError("its objects_sha256 cannot be None")


def identity_of(schema: Schema) -> object:
    """What a fingerprint says of a schema: reBEN's, which the first version had no word for, by its modalities."""
    names = list(schema.modality_names)
    if not set(names) <= set(REBEN.modality_names):
        return schema.to_json()
    known = REBEN.only(names)
    # The first roots did not list the codes without a class; they keep their fingerprints.
    ours, theirs = (
        (one.modalities, replace(one.classes, without_class=()), one.patch_m) for one in (schema, known)
    )
    return names if ours == theirs else schema.to_json()
