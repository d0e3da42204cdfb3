"""What a root (``manifest.json``) and an export (``export.json``) say of themselves, read with distrust.

A document is written sealed with its own digest, and each key that a reader uses is checked: its
type, its range, and that it does not contradict the others. The first version's documents have no
digest; they are known by having exactly that version's keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from reben_cloud.bigearthnet.official import OFFICIAL_SCHEMA
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import RebenError
from reben_cloud.root.digest import DIGEST, is_intact, sealed
from reben_cloud.root.references import RemoteObject
from reben_cloud.schema import Schema

MANIFEST = "manifest.json"
"""The commit point of a root: without it there is no dataset."""

FORMAT_VERSION = 2
"""Version of a root's and of an export's layout; readers refuse a higher one. The first has reBEN's schema."""

SCHEMA = "schema"
"""Key under which a document carries the schema, from version 2 on."""

METADATA = "metadata"
"""Key of the names of the metadata columns of which a root was made, in order, from version 2 on."""

REFERENCES = "references"
"""Key of the objects that the payloads of a reference root lie in; other roots have their payloads themselves."""

ROOT_FORMAT = "reben_cloud root"
"""Names the document of a root."""

EXPORT_FORMAT = "reben_cloud export"
"""Names the document of an export."""

_REQUIRED = {
    "format",
    "version",
    "created_from",
    "modalities",
    "num_patches",
    "products",
    "groups",
    "countries",
    "order",
    "fingerprint",
}

_UNSEALED = _REQUIRED | {
    "shard_samples", "zarr_shard_patches", "objects_sha256", "kind", "settings", "identity", "nbytes",
    "exported_groups", "files",
}  # fmt: skip
"""Every key that a document without a digest can have; for good."""

_Q = 2**63


class InvalidManifestError(ValueError):
    """A document does not say what one of its kind says; the reader names the object and the way out."""


def to_bytes(document: Mapping[str, Any]) -> bytes:
    """The document as it is stored, sealed."""
    return json.dumps(sealed(document), indent=2).encode()


def from_bytes(text: bytes | memoryview, *, where: str, kind: str = ROOT_FORMAT) -> dict[str, Any]:
    """A stored document, checked.

    Args:
        text: What was read.
        where: The root or the folder, for the message about its version.
        kind: `ROOT_FORMAT` or `EXPORT_FORMAT`.

    Raises:
        InvalidManifestError: If it is damaged or not of that kind; says what is wrong with it.
        RebenError: If a newer version has written it.
    """
    try:
        document = json.loads(bytes(text))
    except ValueError as error:
        raise InvalidManifestError(f"it is not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != kind:
        raise InvalidManifestError(f"its format is not {kind!r}")
    version, damaged = document.get("version"), DIGEST in document and not is_intact(document)
    if _is_int(version, FORMAT_VERSION + 1):
        # Said before anything else: a newer version may take its digest of other things.
        hint = ", or copy it again if nothing newer made it: it does not have its own digest" * damaged
        raise RebenError(
            f"{where} has format version {version}, this reben_cloud reads up to {FORMAT_VERSION}; upgrade it{hint}"
        )
    if damaged:
        raise InvalidManifestError("it does not have its own digest")
    if not _is_int(version, 1):
        raise InvalidManifestError(f"its version is {version!r}")
    _check(document, kind)
    return document


def schema_of(document: Mapping[str, Any]) -> Schema:
    """What the patches of a root or an export have.

    Raises:
        ValueError: If the document has no valid schema.
    """
    if document["version"] == 1:
        return REBEN.only([str(name) for name in document["modalities"]])
    return Schema.from_json(document.get(SCHEMA))


def identity_of(schema: Schema) -> object:
    """What a fingerprint says of a schema: reBEN's, which the first version had no word for, by its modalities."""
    names = list(schema.modality_names)
    return names if schema.modalities == REBEN.only(names).modalities else schema.to_json()


def metadata_columns(document: Mapping[str, Any]) -> list[str]:
    """Names of the metadata columns of which a root was made, in order."""
    return list(document[METADATA]) if METADATA in document else list(OFFICIAL_SCHEMA.names)


def _check(document: Mapping[str, Any], kind: str) -> None:
    missing = sorted(_REQUIRED - document.keys())
    if missing:
        raise InvalidManifestError(f"it has no {missing[0]}")
    unknown = sorted(document.keys() - _UNSEALED)
    if DIGEST not in document and unknown:
        # Only the first version wrote without a digest: either this key or the digest's name is damaged.
        raise InvalidManifestError(
            f"it has no digest, and a key {unknown[0]!r} that is not known without one"
        )
    for key, wrong in {
        "modalities": _are_other_modalities(document["modalities"], document),
        "num_patches": not _is_int(document["num_patches"], 1),
        "products": not _are_names(document["products"]),
        "countries": not _are_names(document["countries"]),
        "created_from": not isinstance(document["created_from"], str),
        "fingerprint": not _is_hex(document["fingerprint"], 16),
        "order": not _is_order(document["order"]),
        "groups": not isinstance(document["groups"], dict),
    }.items():
        if wrong:
            raise InvalidManifestError(f"its {key} cannot be {document[key]!r:.80}")
    if document["version"] > 1 and not _are_columns(document.get(METADATA)):
        raise InvalidManifestError(f"its {METADATA} cannot be {document.get(METADATA)!r:.80}")
    (_check_root if kind == ROOT_FORMAT else _check_export)(document)


def references_of(document: Mapping[str, Any]) -> tuple[RemoteObject, ...] | None:
    """The objects that a reference root names; None for a root that has its payloads itself.

    Raises:
        InvalidManifestError: If they are something else.
    """
    if REFERENCES not in document:
        return None
    value = document[REFERENCES]
    if not isinstance(value, list) or not value:
        raise InvalidManifestError(f"its {REFERENCES} cannot be {value!r:.80}")
    try:
        return tuple(map(RemoteObject.from_json, value))
    except ValueError as error:
        raise InvalidManifestError(f"its {REFERENCES}: {error}") from error


def _check_root(document: Mapping[str, Any]) -> None:
    references_of(document)
    if not _is_hex(document.get("objects_sha256"), 64):
        raise InvalidManifestError(f"its objects_sha256 cannot be {document.get('objects_sha256')!r:.80}")
    if document["modalities"]:
        _check_groups(document)
        total = sum(group["num_samples"] for group in document["groups"].values())
        if total != document["num_patches"]:
            raise InvalidManifestError(
                f"its groups have {total:,} samples and it has {document['num_patches']:,} patches"
            )
    elif document["groups"]:
        raise InvalidManifestError("it has groups of shards, and no modality that would be in them")


def _check_export(document: Mapping[str, Any]) -> None:
    _check_groups(document)
    exported = document.get("exported_groups")
    if not isinstance(exported, dict) or not exported:
        raise InvalidManifestError(f"its exported_groups cannot be {exported!r:.80}")
    for name, count in exported.items():
        most = document["groups"].get(name, {}).get("num_samples", 0)
        if not _is_int(count, 1) or count > most:
            raise InvalidManifestError(f"its exported_groups say {count!r} of the {most:,} samples of {name}")
    if sum(exported.values()) != document["num_patches"]:
        raise InvalidManifestError(
            f"its exported_groups are not the {document['num_patches']:,} patches that it has"
        )
    files, settings = document.get("files"), document.get("settings")
    if not isinstance(files, dict) or not all(_is_file(value) for value in files.values()):
        raise InvalidManifestError("its files are not sizes and checksums")
    if not isinstance(settings, dict) or not _is_hex(document.get("identity"), 64):
        raise InvalidManifestError("its settings or its identity are missing")
    if not _is_int(document.get("nbytes"), 0) or not isinstance(document.get("kind"), str):
        raise InvalidManifestError("its kind or its nbytes are missing")
    if document["kind"] == "safetensors" and not _is_int(settings.get("patches_per_file"), 1):
        raise InvalidManifestError(f"its patches_per_file cannot be {settings.get('patches_per_file')!r:.80}")


def _check_groups(document: Mapping[str, Any]) -> None:
    step = document.get("shard_samples")
    if not _is_int(step, 1) or not _is_int(document.get("zarr_shard_patches"), 1):
        raise InvalidManifestError(
            "its shard_samples or its zarr_shard_patches are missing, or not numbers above 0"
        )
    for name, group in document["groups"].items():
        samples, shards = (
            (group.get("num_samples"), group.get("num_shards")) if isinstance(group, dict) else (0, 0)
        )
        if not _is_int(samples, 1) or shards != -(-samples // step):
            raise InvalidManifestError(
                f"its group {name!r} cannot have {samples!r} samples in {shards!r} shards of {step}"
            )


def _is_int(value: Any, least: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _Q


def _is_hex(value: Any, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def _are_names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(v, str) and v for v in value)
        and value == sorted(set(value))
    )


def _are_other_modalities(value: Any, document: Mapping[str, Any]) -> bool:
    if not isinstance(value, list):
        return True
    try:
        return value != list(schema_of(document).modality_names)
    except ValueError as error:
        raise InvalidManifestError(f"its schema is not valid: {error}") from error


def _is_order(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("kind"), str) and _is_int(value.get("seed"), -_Q)


def _is_file(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_int(value[0], 0) and _is_hex(value[1], 16)


def _are_columns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(name, str) and name for name in value)
        and len(set(value)) == len(value)
        and "patch_id" in value
    )
