"""The files of an LMDB and its records, each compared with the table beside it where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reben_cloud.checks.index import PatchIndex
from reben_cloud.checks.objects import Check
from reben_cloud.errors import InvalidPatchError, NotFoundError, RebenError, SourceError
from reben_cloud.export import find_damage
from reben_cloud.export.opened import is_export
from reben_cloud.export.plan import read_manifest


def lmdb_files(folder: str) -> tuple[dict[str, int], list[str], bool]:
    """The sizes of the files of an LMDB in bytes, what is wrong with them at a glance, and whether LMDB can open it."""
    from reben_cloud.formats import lmdb

    here = Path(folder)
    problems, readable = [], True
    try:
        damage = find_damage(here, read_manifest(here)) if is_export(folder) else None
        problems += [damage] if damage else []
    except RebenError as error:
        problems.append(str(error))
    try:
        lmdb.open_lmdb(folder)
    except (NotFoundError, SourceError) as error:
        problems, readable = problems or [str(error)], False
    files = {file.name: file.stat().st_size for file in here.iterdir()}
    return files, problems, readable


def record_checks(folder: str, index: PatchIndex) -> list[Check]:
    """Checks that read every record."""
    return [_RecordsCheck(folder, index, rows) for rows in index.parts()]


@dataclass(frozen=True, slots=True)
class _RecordsCheck:
    """Read the records of some patches."""

    folder: str
    index: PatchIndex
    rows: NDArray[np.int64]

    def __call__(self) -> list[str]:
        from reben_cloud.formats import lmdb

        problems = []
        file = lmdb.open_lmdb(self.folder)
        for row, official in zip(self.rows.tolist(), self.index.rows(self.rows), strict=True):
            for modality in self.index.modalities:
                key = modality.key(official)
                payload = file.get(key.encode())
                if payload is None:
                    problems.append(f"data.mdb: no record {key}")
                    continue
                try:
                    modality.check(payload, name=f"record {key}")
                except InvalidPatchError as error:
                    problems.append(f"data.mdb: {error}")
                else:
                    problems += self.index.compare(modality, row, payload, f"data.mdb record {key}")
        return problems
