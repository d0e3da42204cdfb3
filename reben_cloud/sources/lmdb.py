"""The records of an LMDB as a source: rico-hdl's, or an export of the official data."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from reben_cloud.bigearthnet.reben import MAP, REBEN
from reben_cloud.errors import SourceError
from reben_cloud.formats import lmdb
from reben_cloud.root.patch import Patch, PatchInfo, key_of
from reben_cloud.sources import Official
from reben_cloud.sources.exports import compare_exported
from reben_cloud.sources.folders import official_name, refuse_twice, spellings
from reben_cloud.store import file_version

logger = logging.getLogger(__name__)

_MAP_SUFFIX = MAP.key_suffix.encode()
_MODALITY = {f"S{sensor}{satellite}_".encode(): f"s{sensor}" for sensor in (1, 2) for satellite in "ABCD"}
_V1_UNDERSCORES = 4  # S2A_MSIL2A_20170613T101031_87_48; of v2 it is seven
_CHECKED_RECORDS = 256


@dataclass(frozen=True, slots=True)
class LmdbSource(Official):
    """The records of an LMDB folder that rico-hdl or `reben-cloud export` wrote."""

    folder: str
    """The folder that holds ``data.mdb``."""
    only: tuple[str, ...] = ()
    """Modalities to look at; all when empty."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Modality that it lacks -> what is near it, looks like that modality and is not taken (`recognise`)."""

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "rico-hdl LMDB"

    def describe(self) -> str:
        """One line for people."""
        return f"rico-hdl LMDB {self.folder}"

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Names by modality, from the keys; a few hundred records of each are looked at, the others when they are read.

        Keys that are not records (``__len__`` and the like) are left out, with a warning that counts them.

        Raises:
            SourceError: If it has no records of BigEarthNet v2, or some of v1.
            InvalidPatchError: If a record has other tensors, dtypes or shapes; it names the record.
        """
        found: dict[str, list[str]] = {}
        foreign: list[bytes] = []
        # Keys alone: a value's size is on its own first page, and 1.6 million of those take minutes to read.
        file = lmdb.open_lmdb(self.folder)
        for key in file.iter_keys():
            modality, name = _MODALITY.get(key[:4]), key.removesuffix(_MAP_SUFFIX)
            if modality is None:
                foreign.append(key)
                continue
            if len(name) < len(key):
                modality = "map"
            if self.only and modality not in self.only:
                continue
            if modality == "s2" and key.count(b"_") == _V1_UNDERSCORES:
                raise SourceError(
                    f"{self.folder}: the record {lmdb.text_of(key)!r} is named as BigEarthNet v1 names its patches; "
                    "a root is made of v2's"
                )
            found.setdefault(modality, []).append(lmdb.text_of(name))
        for modality, names in found.items():
            for one in [*names[:: -(-len(names) // _CHECKED_RECORDS)], names[-1]]:
                record = f"{one}{lmdb.text_of(_MAP_SUFFIX)}" if modality == "map" else one
                payload = file.get(record.encode()) or b""
                REBEN.modality(modality).check(payload, name=f"{self.folder}: record {record!r}")
        lacking = [modality for modality in self.only if modality not in found]
        if lacking:
            raise SourceError(f"{self.folder}: an LMDB without records of {' and '.join(lacking)}")
        if not found:
            keys_are = (
                f"; its keys are like {lmdb.text_of(foreign[0])!r} ({len(foreign):,} keys)"
                if foreign
                else ", it is empty"
            )
            raise SourceError(
                f"{self.folder}: an LMDB without records of BigEarthNet v2{keys_are}. Records in "
                "named databases inside it are not read"
            )
        if foreign:
            logger.warning(
                "%s: %s that are not records of BigEarthNet v2 are left out, the first is %r",
                self.folder,
                f"{len(foreign):,} {'key' if len(foreign) == 1 else 'keys'}",
                lmdb.text_of(foreign[0]),
            )
        found = {m: [official_name(m, name) for name in names] for m, names in found.items()}
        for modality, names in found.items():
            refuse_twice(modality, names, self.describe())
        return found

    def identity(self) -> Mapping[str, str]:
        """Size and time of ``data.mdb``."""
        return {"data.mdb": file_version(Path(self.folder, "data.mdb"))}

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:  # noqa: ARG002 - the protocol's
        """Nothing: the file holds many patches."""
        return ""

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch."""
        wanted = [self._key(m, info) for m in modalities]
        values = lmdb.read_many(self.folder, wanted)
        for modality, key, value in zip(modalities, wanted, values, strict=True):
            REBEN.modality(modality).check(value, name=f"{self.folder}: record {key!r}")
        payloads = dict(zip(modalities, values, strict=True))
        compare_exported(self.folder, info.patch_id, payloads)
        return Patch(info=info, payloads=payloads)

    def holds(self, modality: str, info: PatchInfo) -> bool:
        """Whether there is a record of a patch."""
        return lmdb.open_lmdb(self.folder).get(self._key(modality, info).encode()) is not None

    def _key(self, modality: str, info: PatchInfo) -> str:
        """The key of a record: as the metadata spell the patch's name, or as this LMDB does."""
        key = key_of(REBEN.modality(modality), info)
        official, *others = spellings(modality, key)
        if not others or lmdb.open_lmdb(self.folder).get(official.encode()) is not None:
            return official
        return next((k for k in others if lmdb.open_lmdb(self.folder).get(k.encode()) is not None), official)

    def spelled_here(self, official: pa.Table) -> pa.Table:
        """Metadata with S1 names as the keys of this LMDB spell them, for who finds records by them."""
        column = REBEN.modality("s1").key_column
        keys = (lmdb.text_of(key) for key in lmdb.open_lmdb(self.folder).iter_keys() if key.startswith(b"S1"))
        # Whether x and y have a zero before them is seen only where one of them is below ten.
        told = next((key for key in keys if len(spellings("s1", official_name("s1", key))) > 1), None)
        if told is None or told == official_name("s1", told) or column not in official.column_names:
            return official
        padded = [spellings("s1", name)[-1] if name else name for name in official.column(column).to_pylist()]
        place = official.column_names.index(column)
        return official.set_column(place, column, pa.array(padded, pa.string()))


def modalities_of(folder: str | os.PathLike[str]) -> list[str]:
    """The modalities that an LMDB's keys say it has; the keys of one are not all read if more is soon found."""
    found = set()
    for key in lmdb.open_lmdb(folder).iter_keys():
        modality = _MODALITY.get(key[:4])
        if modality is not None:
            found.add("map" if key.endswith(_MAP_SUFFIX) else modality)
            if len(found) == len(REBEN.modality_names):
                break
    return [modality for modality in REBEN.modality_names if modality in found]
