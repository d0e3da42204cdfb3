"""WebDataset tar shards whose records all have one size: payloads in, shard bytes out, and back.

A sample is two members, ``<patch_id>.<modality>.safetensors`` and ``<patch_id>.json``, each with one
512-byte ustar header. Payloads of a modality have one size and the JSON is padded with spaces, so
sample i starts at byte ``i * record_bytes(modality)`` and a shard can be viewed as a
``uint8 [num_samples, record_bytes]`` array. The same samples always give the same bytes: mtime 0,
owner 0, no PAX records. This module knows nothing of stores, order or metadata tables.
"""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from typing import IO

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import InvalidPatchError
from reben_cloud.schema import Buffer, Modality

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


def record_bytes(modality: Modality) -> int:
    """Bytes from one sample of a shard to the next: 163,328 of reBEN's s2, 117,760 of s1, 31,232 of map."""
    return 2 * BLOCK_BYTES + _padded(modality.payload_bytes) + JSON_BYTES


def shard_bytes(modality: Modality, num_samples: int) -> int:
    """Size of a shard: its records, two empty blocks, padded to tar's 10,240-byte records."""
    used = num_samples * record_bytes(modality) + 2 * BLOCK_BYTES
    return -(-used // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def encode_shard(
    modality: Modality, samples: Iterable[tuple[str, Buffer, Mapping[str, object]]], *, num_samples: int
) -> memoryview:
    """The bytes of a shard.

    Args:
        modality: What the shard holds.
        samples: (patch_id, payload, metadata for the JSON member) in order. Each is let go before the next
            one is asked for: the shard is all the memory that this takes.
        num_samples: How many they are.

    Raises:
        InvalidPatchError: If a payload is not one of `modality`, or a JSON text is too long.
        ValueError: If there are more or fewer samples.
    """
    # NumPy asks for huge pages, which a bytearray does not: a fifth of the time went into page faults.
    shard = np.zeros(shard_bytes(modality, num_samples), np.uint8).data
    record = record_bytes(modality)
    for row, (patch_id, payload, metadata) in zip(range(num_samples), samples, strict=True):
        modality.check(payload, name=patch_id)
        text = encode_json(metadata)
        start = row * record
        shard[start : start + BLOCK_BYTES] = _header(f"{patch_id}.{modality.name}.safetensors", len(payload))
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


def payload_of(modality: Modality, record: bytes, patch_id: str) -> bytes | None:
    """The payload in a record of `record_bytes`, None when it is another patch's or cut off."""
    name = f"{patch_id}.{modality.name}.safetensors".encode("ascii")
    if len(record) != record_bytes(modality) or record[: len(name) + 1] != name + b"\0":
        return None
    return record[PAYLOAD_OFFSET : PAYLOAD_OFFSET + modality.payload_bytes]


def records(modality: Modality, shard: Buffer) -> NDArray[np.uint8] | None:
    """The shard as ``uint8 [num_samples, record_bytes]``, a view; None when it is not strided.

    Every record's tar and safetensors header is compared with the first one's (names and header
    checksums apart), vectorised: about half a microsecond a sample. Pixels are not looked at:
    that is what the shard's checksum is for.
    """
    data = np.frombuffer(shard, np.uint8)
    record = record_bytes(modality)
    count = max(0, data.size - 2 * BLOCK_BYTES) // record
    # The padding after the last record can be longer than a (map) record: stop at the first zero.
    view = data[: count * record].reshape(count, record)
    count = int(np.count_nonzero(view[:, 0]))
    view = view[:count]
    if data.size != shard_bytes(modality, count) or data[count * record :].any():
        return None
    payload = modality.payload_bytes
    expected = (
        (0, _header(f"x.{modality.name}.safetensors", payload)),
        (PAYLOAD_OFFSET + _padded(payload), _header("x.json", JSON_BYTES)),
    )
    for start, header in expected:
        want = np.frombuffer(header, np.uint8)
        got = view[:, start : start + BLOCK_BYTES]
        # ustar: name 0-99, mode, uid, gid, size, mtime 100-147, checksum 148-155, the rest.
        if not ((got[:, 100:148] == want[100:148]).all() and (got[:, 156:] == want[156:]).all()):
            return None
    known = np.frombuffer(modality.payload_header, np.uint8)
    if not (view[:, PAYLOAD_OFFSET : PAYLOAD_OFFSET + known.size] == known).all():
        return None
    return view


def name_in(header: Buffer) -> bytes:
    """The name of the member whose header, 512 bytes, comes first."""
    return bytes(header[:NAME_BYTES]).partition(b"\0")[0]


def name_fields(names: NDArray[np.bytes_]) -> list[bytes]:
    """What the headers of members with these names begin with: each name, filled up to `NAME_BYTES`."""
    if names.itemsize > NAME_BYTES:  # no header has such a name
        return [name.ljust(NAME_BYTES, b"\0") for name in names.tolist()]
    fields: list[bytes] = names.astype(f"S{NAME_BYTES}").view(f"V{NAME_BYTES}").tolist()
    return fields


def find_payloads(modality: Modality, file: IO[bytes]) -> dict[str, int]:
    """Where the payloads of any tar with the same members start: name of the member -> first byte.

    Raises:
        InvalidPatchError: If a payload has another size than those of `modality`.
        tarfile.TarError: If the bytes are not a tar.
    """
    found: dict[str, int] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if not member.name.endswith(f".{modality.name}.safetensors"):
                continue
            if not member.isfile() or member.size != modality.payload_bytes:
                raise InvalidPatchError(f"{member.name}: not a payload of {modality.name}")
            found[member.name] = member.offset_data
    return found


def patch_ids(view: NDArray[np.uint8]) -> list[str]:
    """The patch ids of a view made by `records`, in order."""
    names = np.ascontiguousarray(view[:, :100]).view("S100")[:, 0]
    return [name.split(b".", 1)[0].decode() for name in names.tolist()]


def iter_samples(modality: Modality, shard: Buffer) -> list[tuple[str, bytes, dict[str, object]]]:
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
            elif extension == f"{modality.name}.safetensors":
                found[key] = file.read()
                modality.check(found[key], name=member.name)
            else:
                raise InvalidPatchError(f"{member.name}: not a member of a shard of {modality.name}")
    return [(key, payload, texts.get(key, {})) for key, payload in found.items()]
