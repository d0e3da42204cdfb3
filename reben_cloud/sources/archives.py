"""The official archives as a source: three tars, packed as `sources.packed` reads them, read once from front to back.

    BigEarthNet-S2.tar.zst   BigEarthNet-S1.tar.zst   Reference_Maps.tar.zst

They lie on a disk, behind HTTP(S) or on S3, and are never unpacked to files. A stream cannot be
asked for one patch, and the archives are sorted differently (S1 by scene, the others by product):
`iter_payloads` yields payloads in the archive's own order, and who wants another order keeps them.
"""

from __future__ import annotations

import logging
import posixpath
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import InvalidPatchError, SourceError
from reben_cloud.files.clutter import is_clutter
from reben_cloud.formats.geotiff_decode import read_pixels
from reben_cloud.root.patch import PatchInfo
from reben_cloud.sources import Official
from reben_cloud.sources.folders import FOLDERS, SUFFIXES, file_part, is_patch, official_name
from reben_cloud.sources.packed import CutShortError, Read, parts_from, unpacked
from reben_cloud.store import Store

logger = logging.getLogger(__name__)

ARCHIVES: Mapping[str, str] = {m: f"{folder}.tar.zst" for m, folder in FOLDERS.items()}
"""Modality -> official name of its archive."""

_BLOCK = 512
_MAX_FILE_BYTES = 1 << 20  # the largest official TIFF has 58,024 bytes
_ADLER_MODULUS = 65_521
_SKIP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ArchiveSource(Official):
    """The official archives, one per modality."""

    files: Mapping[str, tuple[Store, str]]
    """Modality -> the store that holds its archive, and the path in it; of an archive in parts, of the first."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Modality that it lacks -> what is near it, looks like that modality and is not taken (`recognise`)."""
    is_partial: bool = False
    """Whether patches may lack, and an archive may be cut short: then its names are read first, which takes a reading
    of each archive, and what comes after the cut is not missed."""

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "official archives"

    @property
    def streamed(self) -> Sequence[str]:
        """All that they have."""
        return list(self.files)

    def describe(self) -> str:
        """One line for people."""
        return "archives " + ", ".join(f"{m}: {s.url}/{path}" for m, (s, path) in self.files.items())

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Every patch of the metadata: the official archives hold exactly those. Of partial ones, what is in them."""
        if not self.is_partial:
            return dict.fromkeys(self.files)
        return {modality: list(self._complete(modality)) for modality in self.files}

    def _complete(self, modality: str) -> Iterator[str]:
        """Names of the patches of which an archive has every file; nothing is decoded."""
        places = REBEN.modality(modality).places
        try:
            for name, found in self._iter_patches(modality):
                if len(found) == len(places):
                    yield name
        except CutShortError as error:
            logger.warning("%s; what comes after that is left out", error)

    def _iter_patches(self, modality: str) -> Iterator[tuple[str, Mapping[str, _File]]]:
        store, path = self.files[modality]
        where = f"{store.url}/{path}"
        with unpacked(store, path) as read:
            yield from _iter_patches(modality, _iter_files(read, where), where)

    def identity(self) -> Mapping[str, str]:
        """Sizes and times of the archives.

        Raises:
            SourceError: If one is not there.
        """
        found = {}
        for store, first in self.files.values():
            try:
                for path in parts_from(store, first):
                    found[path] = store.stat(path).version
            except FileNotFoundError as error:
                raise SourceError(f"{store.url}/{first}: no such archive") from error
        return found

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:  # noqa: ARG002 - the protocol's
        """Nothing: an archive holds many patches."""
        return ""

    def iter_payloads(
        self, modality: str, *, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, bytes | None]]:
        """Every patch of one archive, in its order.

        Args:
            modality: Which archive.
            wanted: Of a name (patch id, or S1 name), whether its payload is to be decoded; asked
                once per patch.

        Yields:
            (name, payload), None in place of a payload that is not wanted.

        Raises:
            SourceError: If the archive is damaged, cut short, or holds what it must not; the
                message names the archive and the member.
            InvalidPatchError: If a TIFF has another shape or dtype than its band.
        """
        store, path = self.files[modality]
        try:
            for name, files in self._iter_patches(modality):
                payload = _payload(modality, name, files, f"{store.url}/{path}") if wanted(name) else None
                yield name, payload
        except CutShortError:
            if not self.is_partial:  # else `names` has told
                raise


class _File(NamedTuple):
    """A regular file of an archive."""

    name: str
    data: bytes


def _iter_files(read: Read, where: str) -> Iterator[_File]:
    """The regular files of a tar stream (GNU or POSIX), in order.

    Written out because `tarfile` takes 60 us a member, and there are 8.2 million; checked as
    `tarfile` checks, and nothing but files and folders is let through.
    """
    name = ""  # from a GNU long-name or PAX record, for the member that follows it
    last = "its first block"
    while True:
        header = read(_BLOCK)
        if len(header) < _BLOCK:
            raise CutShortError(f"{where}: cut short after {last}; load it again")
        if header[257:262] != b"ustar":
            if not any(header):
                # To its end: checksums of gzip and zstd stand behind the bytes that they are of.
                while rest := read(_SKIP_BYTES):
                    if any(rest):
                        raise SourceError(
                            f"{where}: goes on behind its end, which comes after {last}; archives that were put one "
                            "behind the other (cat) are read as the first alone: keep them apart, or unpack them"
                        )
                return
            raise SourceError(f"{where}: not a tar archive, or damaged after {last}")
        # Adler-32's lower half is one more than the sum of the bytes, and ten times quicker than `sum`.
        total = zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF
        if total != (_octal(header[148:156]) + 1) % _ADLER_MODULUS:
            raise SourceError(f"{where}: damaged after {last}, a header's checksum is wrong")
        kind, size = header[156:157], _octal(header[124:136])
        if size > _MAX_FILE_BYTES and _is_clutter(name or _name(header)):
            _skip(read, size, where, last)
            last, name = name or _name(header), ""
            continue
        if not 0 <= size <= _MAX_FILE_BYTES:
            raise SourceError(f"{where}: {_name(header)} has {size:,} bytes, no patch file is that large")
        padded = -(-size // _BLOCK) * _BLOCK
        data = read(padded)
        if len(data) < padded:
            raise CutShortError(f"{where}: cut short within {name or _name(header)}; load it again")
        if kind == b"L":
            name = data[:size].rstrip(b"\0").decode("utf-8", "replace")
            continue
        if kind == b"x":
            name = _pax_path(data[:size]) or name
            continue
        if kind == b"g":
            continue
        name = name or _name(header)
        if name.startswith("/") or ".." in name.split("/"):
            raise SourceError(
                f"{where}: the member {name!r} climbs out of the archive; do not trust this file"
            )
        if _is_clutter(name):
            pass  # also links and the like: nothing of it is read
        elif kind in (b"0", b"\0"):
            yield _File(posixpath.normpath(name), data[:size])
        elif kind != b"5":
            what = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device"}
            raise SourceError(
                f"{where}: the member {name!r} is {what.get(kind, 'no plain file')}, "
                "an official archive holds plain files only"
            )
        last, name = name, ""


def _is_clutter(path: str) -> bool:
    return any(is_clutter(part) for part in path.split("/") if part not in ("", ".", ".."))


def _skip(read: Read, size: int, where: str, last: str) -> None:
    left = -(-size // _BLOCK) * _BLOCK
    while left:
        data = read(min(left, _SKIP_BYTES))
        if not data:
            raise CutShortError(f"{where}: cut short after {last}; load it again")
        left -= len(data)


def _octal(field: bytes) -> int:
    """A tar header's number; -1 when it is none."""
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return -1


def _name(header: bytes) -> str:
    name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
    prefix = header[345:500].rstrip(b"\0").decode("utf-8", "replace") if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax_path(records: bytes) -> str:
    for record in records.split(b"\n"):
        _, _, value = record.partition(b" ")
        if value.startswith(b"path="):
            return value[5:].decode("utf-8", "replace")
    return ""


def _iter_patches(
    modality: str, files: Iterator[_File], where: str
) -> Iterator[tuple[str, Mapping[str, _File]]]:
    """Name and files of every patch; they lie together, and are handed out when the next patch begins."""
    patch, found = "", dict[str, _File]()
    for file in files:
        name, tensor = _member(modality, file.name, where)
        if name != patch:
            if patch:
                yield patch, found
            patch, found = name, {}
        if tensor in found:
            raise SourceError(f"{where}: {file.name} comes twice")
        found[tensor] = file
    if not patch:
        raise SourceError(f"{where}: holds no files")
    yield patch, found


def _member(modality: str, path: str, where: str) -> tuple[str, str]:
    """Name of the patch and of the tensor that a member holds."""
    parts = path.split("/")
    places = REBEN.modality(modality).places
    stem, ending = posixpath.splitext(parts[-1])
    if len(parts) >= 2 and ending.lower() in SUFFIXES and is_patch(modality, parts[-2]):
        part = stem.removeprefix(parts[-2] + "_")
        for tensor in places:
            if part == file_part(tensor):
                return official_name(modality, parts[-2]), tensor
    raise SourceError(
        f"{where}: the member {path!r} is none of {FOLDERS[modality]} "
        f"(<patch>/<patch>_{file_part(next(iter(places)))}.tif and the like); is it another archive?"
    )


def _payload(modality: str, name: str, files: Mapping[str, _File], where: str) -> bytes:
    lacking = [file_part(tensor) for tensor in REBEN.modality(modality).places if tensor not in files]
    if lacking:
        raise SourceError(f"{where}: {name} has no {', '.join(lacking)}")
    try:
        footprint = grid.footprint(_patch_id(name) if modality == "s1" else name)
    except ValueError as error:
        raise SourceError(f"{where}: {error}") from error
    parts: list[bytes | memoryview] = [REBEN.modality(modality).payload_header]
    for tensor, expected in REBEN.modality(modality).places.items():
        file = files[tensor]
        try:
            parts.append(read_pixels(file.data, expected, footprint, name=file.name))
        except (SourceError, InvalidPatchError) as error:
            raise type(error)(f"{where}: {error}") from error
    return b"".join(parts)


def _patch_id(s1_name: str) -> str:
    """A patch id at the place of an S1 name (square, x and y are equal), for its footprint."""
    square, x, y = s1_name.split("_")[-3:]
    return f"S2A_MSIL2A_20170101T000000_N9999_R000_T{square}_{x:0>2}_{y:0>2}"
