"""What must be true of the JSON document of a manifest: each key's type and range, and that keys agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.formats.parquet import Seal
from reben_cloud.root.digest import DIGEST
from reben_cloud.root.references import RemoteObject
from reben_cloud.schema import Schema

FORMAT_VERSION = 2
"""Version of a root's and of an export's layout; readers refuse a higher one. The first has reBEN's schema."""

_REQUIRED = {
    "format", "version", "created_from", "modalities", "num_patches", "products", "groups", "countries",
    "order", "fingerprint",
}  # fmt: skip
"""What every document has."""

_UNSEALED = _REQUIRED | {
    "shard_samples", "zarr_shard_patches", "objects_sha256", "kind", "settings", "identity", "nbytes",
    "exported_groups", "files",
}  # fmt: skip
"""Every key that a document without a digest can have; for good."""

_Q = 2**63


class InvalidManifestError(ValueError):
    """A document does not say what one of its kind says; the reader names the object and the way out."""


def schema_of(document: Mapping[str, Any]) -> Schema:
    """What the patches of a root or an export have, by a document whose version is known.

    Raises:
        ValueError: If the document has no valid schema.
    """
    if document["version"] == 1:
        return REBEN.only([str(name) for name in document["modalities"]])
    return Schema.from_json(document.get("schema"))


def references_of(document: Mapping[str, Any]) -> tuple[RemoteObject, ...] | None:
    """The objects of others that payloads lie in; None where the root has them itself.

    Raises:
        InvalidManifestError: If they are something else.
    """
    value = document.get("references")
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise InvalidManifestError(f"its references cannot be {value!r:.80}")
    try:
        return tuple(map(RemoteObject.from_json, value))
    except ValueError as error:
        raise InvalidManifestError(f"its references: {error}") from error


def check_entries(document: Mapping[str, Any]) -> None:
    """See to the keys that roots and exports have in common.

    Raises:
        InvalidManifestError: If one is missing or wrong.
    """
    version = document.get("version")
    if not is_int(version, 1) or version > FORMAT_VERSION:
        raise InvalidManifestError(f"its version is {version!r}")
    missing = sorted(_REQUIRED - document.keys())
    if missing:
        raise InvalidManifestError(f"it has no {missing[0]}")
    unknown = sorted(document.keys() - _UNSEALED)
    if DIGEST not in document and unknown:
        # Only the first version wrote without a digest: either this key or the digest's name is damaged.
        raise InvalidManifestError(
            f"it has no digest, and a key {unknown[0]!r} that is not known without one"
        )
    references_of(document)
    sums = document.get("objects_sha256")
    for key, wrong in {
        "modalities": _are_other_modalities(document),
        "num_patches": not is_int(document["num_patches"], 1),
        "products": not _are_names(document["products"]),
        "countries": not _are_names(document["countries"]),
        "created_from": not isinstance(document["created_from"], str),
        "fingerprint": not is_hex(document["fingerprint"], 16),
        "order": not _is_order(document["order"]),
        "groups": not isinstance(document["groups"], dict),
        "metadata": version > 1 and not _are_columns(document.get("metadata")),
        "patches_parquet": not _is_seal(document.get("patches_parquet")),
        "incomplete": not _are_left_out(document.get("incomplete")),
        "objects_sha256": sums is not None and not is_hex(sums, 64),
    }.items():
        if wrong:
            raise InvalidManifestError(f"its {key} cannot be {document.get(key)!r:.80}")


def check_groups(document: Mapping[str, Any]) -> int:
    """See to the groups of shards and the sizes of shards; the number of samples in all groups.

    Raises:
        InvalidManifestError: If one is missing or wrong.
    """
    step = document.get("shard_samples")
    if not is_int(step, 1) or not is_int(document.get("zarr_shard_patches"), 1):
        raise InvalidManifestError(
            "its shard_samples or its zarr_shard_patches are missing, or not numbers above 0"
        )
    total = 0
    for name, group in document["groups"].items():
        samples, shards = (
            (group.get("num_samples"), group.get("num_shards")) if isinstance(group, dict) else (0, 0)
        )
        if not is_int(samples, 1) or shards != -(-samples // step):
            raise InvalidManifestError(
                f"its group {name!r} cannot have {samples!r} samples in {shards!r} shards of {step}"
            )
        total += samples
    return total


def is_int(value: object, least: int) -> TypeGuard[int]:
    """Whether a value of a document is a whole number of 64 bits, at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _Q


def is_hex(value: object, digits: int) -> bool:
    """Whether a value of a document is a string of so many hex digits."""
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def _are_other_modalities(document: Mapping[str, Any]) -> bool:
    if not isinstance(document["modalities"], list):
        return True
    try:
        return document["modalities"] != list(schema_of(document).modality_names)
    except ValueError as error:
        raise InvalidManifestError(f"its schema is not valid: {error}") from error


def _are_names(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(v, str) and v for v in value)
        and value == sorted(set(value))
    )


def _is_order(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("kind"), str) and is_int(value.get("seed"), -_Q)


def _is_seal(value: object) -> bool:
    try:
        return value is None or Seal.from_json(value) is not None
    except (ValueError, TypeError, KeyError):
        return False


def _are_left_out(value: object) -> bool:
    return value is None or (
        isinstance(value, dict)
        and is_int(value.get("num_patches"), 1)
        and isinstance(value.get("first"), list)
        and all(isinstance(name, str) for name in value["first"])
    )


def _are_columns(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(name, str) and name for name in value)
        and len(set(value)) == len(value)
        and "patch_id" in value
    )
