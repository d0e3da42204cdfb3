"""Exports that make files of their own of every patch: pictures, GeoTIFFs.

What is in a file follows from the patch and the settings alone, so files are made in any order, by
several threads. Each finished patch leaves a receipt with the checksums of its files; after a crash, what
is as its receipt says stays, the rest is made again, and the folder gets its name when all is in it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, StorageError
from reben_cloud.export.copying import Origin, Progress, open_origin
from reben_cloud.export.folder import partial_folder, translated
from reben_cloud.export.job import Job, begin
from reben_cloud.export.listing import LISTING, MadeFile, read_listing, write_listing
from reben_cloud.export.pixels import PatchPixels, Squares
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.selection import Selection
from reben_cloud.schema import Array
from reben_cloud.wording import counted, size_text

T = TypeVar("T")

PATCHES_AT_ONCE = 32
"""Most patches that one thread brings and turns into files before it takes others: 10 MB of reBEN's."""

_RECEIPTS = ".receipts"
_SURVEY = ".survey"


class EachPatch(Protocol):
    """Runs over all patches of an export, in any order, in several threads."""

    def __call__(self, look: Callable[[PatchPixels], T], what: str) -> Iterator[T]:
        """What `look` makes of each; `what` is said of the work."""


class Maker(Protocol):
    """Makes the files of patches."""

    @property
    def kind(self) -> str:
        """Form of the export."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it needs of a patch."""

    @property
    def settings(self) -> Mapping[str, object]:
        """What its files depend on besides the patch, as JSON has it."""

    def start(self, chosen: Selection) -> None:
        """Told which patches there are to be, before anything is written."""

    def survey(self, each_patch: EachPatch) -> Mapping[str, object]:
        """Look at all patches first, if it must; what it found, as JSON has it, stands in the manifest too."""

    def make(self, patch: PatchPixels, survey: Mapping[str, object]) -> Mapping[str, bytes]:
        """Path below the folder -> file; the same for the same patch, settings and survey."""

    def finish(self, partial: Path, progress: Progress) -> Mapping[str, object]:
        """Write what the folder has once; what the manifest is to say of that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilesReport:
    """What an export to files did."""

    path: str
    """The folder."""
    kind: str
    """What the files are."""
    num_patches: int
    """Patches in it."""
    num_files: int
    """Files made of patches."""
    num_made: int
    """Patches whose files were made now; those of the others were there."""
    nbytes: int
    """Size of the files, bytes."""
    changed: bool
    """Whether the folder is new, or another one than before."""
    num_added: int = 0
    """Patches that an existing export lacked."""
    num_dropped: int = 0
    """Patches that an existing export had, and has no longer."""
    num_texts: int | None = None
    """Texts in it; None for an export without texts."""

    def to_text(self) -> str:
        """One line for people."""
        there = self.num_patches - self.num_made
        done = "complete already, nothing to make"
        if self.changed:
            done = (
                "made now"
                if not there
                else f"{counted(self.num_made, 'patch', 'patches')} made now, {there:,} were there"
            )
        if self.num_added or self.num_dropped:
            done = (
                f"{counted(self.num_added, 'patch', 'patches')} added, {self.num_dropped:,} dropped, {done}"
            )
        texts = "" if self.num_texts is None else f"{counted(self.num_texts, 'text')}, "
        return (
            f"{self.path}: {counted(self.num_patches, 'patch', 'patches')}, {texts}{counted(self.num_files, 'file')}, "
            f"{size_text(self.nbytes)}, {done}"
        )


def export_files(
    selection: Selection,
    path: str | os.PathLike[str],
    maker: Maker,
    *,
    update: bool,
    prune: bool,
    threads: int,
    progress: Progress | None,
) -> FilesReport:
    """Make the files of a selection in a folder; run again, it continues, or finds that all is done."""
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    job = begin(
        selection,
        path,
        maker.modalities,
        kind=maker.kind,
        settings=maker.settings,
        update=update,
        prune=prune,
        start=maker.start,
    )
    if job.is_done and job.there is not None:
        return _report(job, job.there, num_made=0)
    with partial_folder(job.path, job.making) as partial, translated(job.path):
        work = _Work(job, maker, partial, threads, progress or (lambda items, _total, _what: items))
        survey = work.survey()
        num_made = work.make_missing(survey)
        more = {"num_files": len(work.made), **survey, **maker.finish(partial, work.progress)}
        work.seal()
        made = job.finish(partial, nbytes=sum(file.nbytes for file in work.made), more=more)
    return _report(job, made, num_made=num_made)


def _report(job: Job, manifest: ExportManifest, *, num_made: int) -> FilesReport:
    changed = manifest is not job.there
    return FilesReport(
        path=str(job.path),
        kind=job.kind,
        num_patches=len(job.chosen),
        num_files=manifest.num_files or 0,
        num_made=num_made,
        nbytes=manifest.nbytes,
        changed=changed,
        num_added=job.num_added if changed else 0,
        num_dropped=job.num_dropped if changed else 0,
        num_texts=manifest.num_texts,
    )


class _Work:
    """The files of an export while they are made."""

    def __init__(self, job: Job, maker: Maker, partial: Path, threads: int, progress: Progress) -> None:
        self.maker, self.partial, self.threads, self.progress = maker, partial, threads, progress
        self.made: list[MadeFile] = []
        self._chosen = job.chosen
        self._origin: Origin | None = None
        self._square = Squares.of(job.chosen, maker.modalities)

    def survey(self) -> Mapping[str, object]:
        """What the maker finds when it looks at all patches first; kept for a run that continues."""
        kept = self.partial / _SURVEY
        for found in _lines(kept):
            return dict(found)
        found = self.maker.survey(self._each_patch)
        kept.write_text(_line(found), encoding="utf-8")
        return found

    def _each_patch(self, look: Callable[[PatchPixels], T], what: str) -> Iterator[T]:
        every = np.ones(len(self._square.patch_ids), np.bool_)
        for _, found in self._run(every, look, what):
            yield from found

    def make_missing(self, survey: Mapping[str, object]) -> int:
        """Make the files of the patches that no earlier run has finished; how many patches that were."""
        there = _receipts(self.partial)
        whole = set()
        for patch_id, files in self.progress(there.items(), len(there), "look at what is there"):
            if not any(file.difference(self.partial, whole=True) for file in files):
                whole.add(patch_id)
                self.made += files
        missing = np.array([patch_id not in whole for patch_id in self._square.patch_ids])
        if missing.any():
            self._make(missing, lambda patch: self._write(patch, survey))
        return int(missing.sum())

    def _make(self, missing: NDArray[np.bool_], write: Callable[[PatchPixels], list[MadeFile]]) -> None:
        num_left = int(missing.sum())
        with (self.partial / _RECEIPTS).open("a", encoding="utf-8") as receipts:
            receipts.write("\n")  # ends a line that a crash has torn
            if (self.partial / LISTING).exists():  # all was made once, and is not as it was
                for _, files in itertools.groupby(self.made, lambda file: file.patch_id):
                    receipts.write(_line(list(files)))
                (self.partial / LISTING).unlink()
            for patches, made in self._run(missing, write, "export"):
                receipts.writelines(map(_line, made))
                receipts.flush()
                self.made += itertools.chain.from_iterable(made)
                is_first, num_left = num_left == int(missing.sum()), num_left - len(patches)
                if is_first:
                    self._check_room(
                        sum(file.nbytes for files in made for file in files) / len(made) * num_left
                    )

    def seal(self) -> None:
        """Bring the files to the disk, and put the table of them in the receipts' place."""
        os.sync()  # one call, where a million files would each wait for the disk
        write_listing(self.partial, self.made)
        for name in (_RECEIPTS, _SURVEY):
            (self.partial / name).unlink(missing_ok=True)

    def _write(self, patch: PatchPixels, survey: Mapping[str, object]) -> list[MadeFile]:
        files = []
        for name, data in self.maker.make(patch, survey).items():
            file = self.partial / name
            file.parent.mkdir(parents=True, exist_ok=True)
            # Not under another name first: only a receipt says that a file is whole.
            file.write_bytes(data)
            files.append(MadeFile.of(name, patch.patch_id, data))
        return files

    def _check_room(self, need: float) -> None:
        """Refuse when the disk cannot hold the rest, going by the first files."""
        free = shutil.disk_usage(self.partial).free
        if need > free:
            raise StorageError(
                f"the export needs about {size_text(need)} more and the disk of {self.partial.parent} has "
                f"{size_text(free)}; make room, select fewer patches, or name a folder on another disk"
            )

    def _run(
        self, wanted: NDArray[np.bool_], look: Callable[[PatchPixels], T], what: str
    ) -> Iterator[tuple[NDArray[np.int64], list[T]]]:
        """(Patches, what `look` makes of them) in pieces."""
        if self._origin is None:
            self._origin = open_origin(self._chosen, self.maker.modalities)
        origin = self._origin

        def load(stored: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[T]]:
            patches = origin.patch[stored]
            return patches, [look(patch) for patch in self._read(origin, stored, patches)]

        with ThreadPoolExecutor(self.threads, "reben-export") as pool:
            futures = [pool.submit(load, piece) for piece in _pieces(origin, wanted)]
            try:
                for future in self.progress(as_completed(futures), len(futures), what):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _read(
        self, origin: Origin, stored: NDArray[np.int64], patches: NDArray[np.int64]
    ) -> Iterator[PatchPixels]:
        tensors: list[dict[str, Mapping[str, Array]]] = [{} for _ in stored]
        for modality in self._chosen.dataset.schema.only(self.maker.modalities).modalities:
            part = origin.reader.load((modality.name,), stored)
            for positions, payloads in part[modality.name]:
                for inside, position in enumerate(positions.tolist()):
                    tensors[position][modality.name] = modality.decode(payloads.read(inside))
        for position, patch in enumerate(patches.tolist()):
            yield self._square.patch(patch, tensors[position])


def _pieces(origin: Origin, wanted: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Stored positions of the wanted patches, some of one shard at a time."""
    mine = np.flatnonzero(wanted[origin.patch])
    for part in np.split(mine, np.flatnonzero(np.diff(origin.places.shard[mine])) + 1):
        for start in range(0, len(part), PATCHES_AT_ONCE):
            yield part[start : start + PATCHES_AT_ONCE]


def _line(value: Any) -> str:
    text = json.dumps(value)
    return f"{xxhash.xxh3_64_hexdigest(text.encode())} {text}\n"


def _lines(file: Path) -> Iterator[Any]:
    """The values of the lines that were written whole."""
    with suppress(FileNotFoundError):
        for line in file.read_bytes().splitlines():
            if line[:16] == xxhash.xxh3_64_hexdigest(line[17:]).encode():
                yield json.loads(line[17:])


def _receipts(partial: Path) -> dict[str, list[MadeFile]]:
    """The files of each patch that earlier runs have finished."""
    if (partial / _RECEIPTS).exists():
        receipts = [[MadeFile(*file) for file in files] for files in _lines(partial / _RECEIPTS)]
        return {files[0].patch_id: files for files in receipts}
    found: dict[str, list[MadeFile]] = {}
    with suppress(ChecksumError):
        for file in read_listing(partial):
            found.setdefault(file.patch_id, []).append(file)
    return found
