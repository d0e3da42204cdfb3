"""WebDataset tar shards whose records all have one size: payloads in, shard bytes out, and back.

A sample is two members, ``<patch_id>.<modality>.safetensors`` and ``<patch_id>.json``, each with one
512-byte ustar header. Payloads of a modality have one size and the JSON is padded with spaces, so
sample i starts at byte ``i * RECORD_BYTES[modality]`` and a shard can be viewed as a
``uint8 [num_samples, RECORD_BYTES]`` array. The same samples always give the same bytes: mtime 0,
owner 0, no PAX records. This module knows nothing of stores, order or metadata tables.
"""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import InvalidPatchError
from reben_cloud.root.patch import PAYLOAD_BYTES, PAYLOAD_HEADER, Buffer, check_payload

BLOCK_BYTES = 512
"""Size of a tar header, and the unit to which member data is padded (POSIX.1-1988, ustar)."""

JSON_BYTES = 1024
"""Size of a sample's JSON member: room for all 19 labels (531 bytes) and the other fields."""

NAME_BYTES = 100
"""Room for a member's name, at the start of its header."""

PAYLOAD_OFFSET = BLOCK_BYTES
"""Where the payload starts in a record."""


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


RECORD_BYTES: Mapping[str, int] = MappingProxyType(
    {m: 2 * BLOCK_BYTES + _padded(size) + JSON_BYTES for m, size in PAYLOAD_BYTES.items()}
)
"""Bytes from one sample of a shard to the next: s2 163,328, s1 117,760, map 31,232."""


def shard_bytes(modality: str, num_samples: int) -> int:
    """Size of a shard: its records, two empty blocks, padded to tar's 10,240-byte records."""
    used = num_samples * RECORD_BYTES[modality] + 2 * BLOCK_BYTES
    return -(-used // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def shard_path(group: str, modality: str, number: int) -> str:
    """Path of a shard in a root, e.g. ``shards/train/s2/train-s2-000017.tar``."""
    return f"shards/{group}/{modality}/{group}-{modality}-{number:06d}.tar"


def encode_shard(
    modality: str, samples: Iterable[tuple[str, Buffer, Mapping[str, object]]], *, num_samples: int
) -> memoryview:
    """The bytes of a shard.

    Args:
        modality: ``s2``, ``s1`` or ``map``.
        samples: (patch_id, payload, metadata for the JSON member) in order. Each is let go before the next
            one is asked for: the shard is all the memory that this takes.
        num_samples: How many they are.

    Raises:
        InvalidPatchError: If a payload is not one of `modality`, or a JSON text is too long.
        ValueError: If there are more or fewer samples.
    """
    # NumPy asks for huge pages, which a bytearray does not: a fifth of the time went into page faults.
    shard = np.zeros(shard_bytes(modality, num_samples), np.uint8).data
    record = RECORD_BYTES[modality]
    for row, (patch_id, payload, metadata) in zip(range(num_samples), samples, strict=True):
        check_payload(modality, payload, name=patch_id)
        text = encode_json(metadata)
        start = row * record
        shard[start : start + BLOCK_BYTES] = _header(f"{patch_id}.{modality}.safetensors", len(payload))
        start += BLOCK_BYTES
        shard[start : start + len(payload)] = payload
        start += _padded(len(payload))
        shard[start : start + BLOCK_BYTES] = _header(f"{patch_id}.json", len(text))
        shard[start + BLOCK_BYTES : start + BLOCK_BYTES + JSON_BYTES] = text
    return shard


def encode_json(metadata: Mapping[str, object]) -> bytes:
    """Compact JSON padded with spaces to `JSON_BYTES`.

    Raises:
        InvalidPatchError: If the text is longer than that.
    """
    text = json.dumps(metadata, separators=(",", ":"), ensure_ascii=True).encode()
    if len(text) > JSON_BYTES:
        raise InvalidPatchError(
            f"{metadata.get('patch_id')}: the metadata takes {len(text)} bytes as JSON, "
            f"a shard has room for {JSON_BYTES}"
        )
    return text.ljust(JSON_BYTES)


def _header(name: str, size: int) -> bytes:
    """The ustar header of a member: a template, the name and their checksum; 40 times quicker than `tarfile`."""
    template, checksum = _template(size)
    text = name.encode("ascii")
    if len(text) > 100:
        raise InvalidPatchError(
            f"{name}: a member's name has at most 100 characters, this one has {len(text)}"
        )
    return text.ljust(100, b"\0") + template[100:148] + b"%06o\0" % (checksum + sum(text)) + template[155:]


@functools.cache
def _template(size: int) -> tuple[bytes, int]:
    """The header of a member without name, as `tarfile` writes it, and its checksum."""
    info = tarfile.TarInfo("")
    info.size = size
    info.mode = 0o444
    info.mtime = 0
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header, int(header[148:154], 8)


def payload_of(modality: str, record: bytes, patch_id: str) -> bytes | None:
    """The payload in a record of `RECORD_BYTES`, None when it is another patch's or cut off."""
    name = f"{patch_id}.{modality}.safetensors".encode("ascii")
    if len(record) != RECORD_BYTES[modality] or record[: len(name) + 1] != name + b"\0":
        return None
    return record[PAYLOAD_OFFSET : PAYLOAD_OFFSET + PAYLOAD_BYTES[modality]]


def records(modality: str, shard: Buffer) -> NDArray[np.uint8] | None:
    """The shard as ``uint8 [num_samples, RECORD_BYTES]``, a view; None when it is not strided.

    Every record's tar and safetensors header is compared with the first one's (names and header
    checksums apart), vectorised: about half a microsecond a sample. Pixels are not looked at:
    that is what the shard's checksum is for.
    """
    data = np.frombuffer(shard, np.uint8)
    record = RECORD_BYTES[modality]
    count = max(0, data.size - 2 * BLOCK_BYTES) // record
    # The padding after the last record can be longer than a (map) record: stop at the first zero.
    view = data[: count * record].reshape(count, record)
    count = int(np.count_nonzero(view[:, 0]))
    view = view[:count]
    if data.size != shard_bytes(modality, count) or data[count * record :].any():
        return None
    payload = PAYLOAD_BYTES[modality]
    expected = (
        (0, _header(f"x.{modality}.safetensors", payload)),
        (PAYLOAD_OFFSET + _padded(payload), _header("x.json", JSON_BYTES)),
    )
    for start, header in expected:
        want = np.frombuffer(header, np.uint8)
        got = view[:, start : start + BLOCK_BYTES]
        # ustar: name 0-99, mode, uid, gid, size, mtime 100-147, checksum 148-155, the rest.
        if not ((got[:, 100:148] == want[100:148]).all() and (got[:, 156:] == want[156:]).all()):
            return None
    known = np.frombuffer(PAYLOAD_HEADER[modality], np.uint8)
    if not (view[:, PAYLOAD_OFFSET : PAYLOAD_OFFSET + known.size] == known).all():
        return None
    return view


def name_in(header: Buffer) -> bytes:
    """The name of the member whose header, 512 bytes, comes first."""
    return bytes(header[:NAME_BYTES]).partition(b"\0")[0]


def find_payloads(modality: str, file: IO[bytes]) -> dict[str, int]:
    """Where the payloads of any tar with the same members start: name of the member -> first byte.

    Raises:
        InvalidPatchError: If a payload has another size than those of `modality`.
        tarfile.TarError: If the bytes are not a tar.
    """
    found: dict[str, int] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if not member.name.endswith(f".{modality}.safetensors"):
                continue
            if not member.isfile() or member.size != PAYLOAD_BYTES[modality]:
                raise InvalidPatchError(f"{member.name}: not a payload of {modality}")
            found[member.name] = member.offset_data
    return found


def patch_ids(view: NDArray[np.uint8]) -> list[str]:
    """The patch ids of a view made by `records`, in order."""
    names = np.ascontiguousarray(view[:, :100]).view("S100")[:, 0]
    return [name.split(b".", 1)[0].decode() for name in names.tolist()]


def iter_samples(modality: str, shard: Buffer) -> list[tuple[str, bytes, dict[str, object]]]:
    """(patch_id, payload, metadata) of every sample, read member by member with `tarfile`.

    Raises:
        InvalidPatchError: If a member is not a payload of `modality`.
        tarfile.TarError: If the bytes are no tar.
    """
    found: dict[str, bytes] = {}
    texts: dict[str, dict[str, object]] = {}
    with tarfile.open(fileobj=io.BytesIO(shard), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                raise InvalidPatchError(f"{member.name}: a shard holds plain files only")
            key, extension = member.name.split(".", 1)
            if extension == "json":
                texts[key] = json.loads(file.read())
            elif extension == f"{modality}.safetensors":
                found[key] = file.read()
                check_payload(modality, found[key], name=member.name)
            else:
                raise InvalidPatchError(f"{member.name}: not a member of a shard of {modality}")
    return [(key, payload, texts.get(key, {})) for key, payload in found.items()]
