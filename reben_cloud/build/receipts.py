"""What a task leaves when it is done, by which a build that is run again does it no more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from reben_cloud.root.digest import is_intact, sealed
from reben_cloud.root.objects import WrittenObject
from reben_cloud.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What a task wrote."""

    task: str
    """Name of the task."""
    objects: tuple[WrittenObject, ...]
    """The objects."""
    payloads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Modality -> xxh3-64 of each payload in row order (shard tasks only)."""
    tiny: str = ""
    """`picture.tiny_of` the patches in row order, base64; empty where there is none."""
    stamps: tuple[str, ...] = ()
    """`Source.stamp` of the patches in row order: of which files the objects were made."""

    def to_json(self) -> bytes:
        """The receipt as it is stored, sealed."""
        return json.dumps(sealed(asdict(self)), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes | memoryview) -> Receipt:
        """A stored receipt.

        Raises:
            ValueError, KeyError, TypeError: If it is none, or damaged.
        """
        value = json.loads(bytes(text))
        if not isinstance(value, dict) or not is_intact(value):
            raise ValueError("not a receipt, or a damaged one")
        return cls(
            task=value["task"],
            objects=tuple(WrittenObject(**o) for o in value["objects"]),
            payloads={m: tuple(sums) for m, sums in value["payloads"].items()},
            tiny=value["tiny"],
            stamps=tuple(value["stamps"]),
        )


def read_receipt(store: Store, path: str) -> Receipt | None:
    """The receipt at `path`, None if there is none, or a damaged one."""
    try:
        return Receipt.from_json(store.get(path))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def is_right(store: Store, written: WrittenObject) -> bool:
    """Whether an object is there, with the bytes that were written."""
    try:
        return hashlib.sha256(store.get(written.path)).hexdigest() == written.sha256
    except FileNotFoundError:
        return False


def put(store: Store, path: str, data: bytes | memoryview, *, is_shard: bool = False) -> WrittenObject:
    """Write an object and say what was written."""
    store.put(path, data)
    return WrittenObject.of(path, data, is_shard=is_shard)
