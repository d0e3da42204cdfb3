"""Where the payloads of a hosted dataset lie, by modality and name: what a reference root is planned from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud.bigearthnet.reben import MAP, REBEN
from reben_cloud.errors import SourceError
from reben_cloud.root.patch import PatchInfo
from reben_cloud.root.references import RemoteObject
from reben_cloud.sources import Official

logger = logging.getLogger(__name__)

MAP_SUFFIX = MAP.key_suffix
"""What rico-hdl adds to a patch id for the key of its map."""

_S2, _S1 = r"^S2[A-D]_MSIL2A_.*_\d\d_\d\d$", r"^S1[A-D]_IW_GRDH_"


def split_keys(keys: pa.Array[Any]) -> dict[str, tuple[pa.Array[Any], pa.Array[Any]]]:
    """Modality -> names that the metadata have for its records, and which of the keys they are.

    Args:
        keys: Keys of an LMDB in rico-hdl's layout, UTF-8; others are left out.
    """
    is_map = pc.ends_with(keys, MAP_SUFFIX)
    bare = pc.if_else(is_map, pc.utf8_slice_codeunits(keys, 0, -len(MAP_SUFFIX)), keys)
    is_s2, is_s1 = pc.match_substring_regex(bare, _S2), pc.match_substring_regex(bare, _S1)
    chosen = {"s2": pc.and_not(is_s2, is_map), "s1": pc.and_not(is_s1, is_map), "map": pc.and_(is_s2, is_map)}
    found = {}
    for name in REBEN.modality_names:
        rows = pa.array(np.flatnonzero(chosen[name].to_numpy(zero_copy_only=False)))
        if len(rows):
            found[name] = bare.take(rows), rows
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """Where the payloads of each modality lie."""

    objects: tuple[RemoteObject, ...]
    """The objects that they lie in."""
    places: Mapping[str, pa.Table]
    """Modality -> ``name`` (string, as in the metadata's key column), ``object``, ``offset``, ``nbytes`` (int64)."""


@dataclass(frozen=True, slots=True)
class IndexedSource(Official):
    """What an index knows, as a source of names: a reference root is planned from it, and no payload read."""

    index: Index
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Nothing: an index has all that there is."""

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "references"

    def describe(self) -> str:
        """One line for people."""
        objects = self.index.objects
        return objects[0].url if len(objects) == 1 else f"{len(objects):,} objects like {objects[0].url}"

    def names(self) -> Mapping[str, pa.Array[Any]]:
        """Modality -> the names it holds."""
        return {m: table.column("name").combine_chunks() for m, table in self.index.places.items()}

    def identity(self) -> Mapping[str, str]:
        """Version of each object."""
        return {one.url.rpartition("/")[2]: one.version for one in self.index.objects}

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:  # noqa: ARG002 - the protocol's
        """Nothing: the objects hold many patches."""
        return ""


def index_of(remote: RemoteObject, table: pa.Table) -> Index:
    """The index of an LMDB from where its records lie.

    Args:
        remote: Its file as it was indexed.
        table: ``key`` (binary), ``offset``, ``length`` of every record (`formats.lmdb_index.index`).

    Raises:
        SourceError: If it has no records of BigEarthNet v2, or one has another size.
    """
    table = _named(remote, table)
    texts = table.column("key").combine_chunks().cast(pa.string())
    places: dict[str, pa.Table] = {}
    for name, (names, rows) in split_keys(texts).items():
        here = table.take(rows)
        nbytes, expected = here.column("length"), REBEN.modality(name).payload_bytes
        wrong = np.flatnonzero(nbytes.to_numpy() != expected)
        if wrong.size:
            raise SourceError(
                f"{remote.url}: record {here.column('key')[int(wrong[0])].as_py()!r} has "
                f"{nbytes[int(wrong[0])].as_py():,} bytes and a payload of {name} {expected:,} "
                f"({wrong.size:,} such records); only rico-hdl's own form is read in place"
            )
        places[name] = pa.table(
            {
                "name": names,
                "object": pa.array(np.zeros(len(names), np.int64)),
                "offset": here.column("offset"),
                "nbytes": nbytes,
            }
        )
    if not places:
        first = f"; its keys are like {texts[0].as_py()!r}" if len(texts) else ", it is empty"
        raise SourceError(f"{remote.url}: an LMDB without records of BigEarthNet v2{first}")
    return Index(objects=(remote,), places=places)


def _named(remote: RemoteObject, table: pa.Table) -> pa.Table:
    """The records whose keys are text, as the names of all patches are; the others are told and left out."""
    column = table.column("key")
    try:
        column.cast(pa.string())
    except pa.ArrowInvalid:
        pass
    else:
        return table
    keys = column.to_pylist()
    is_text = np.array([_is_text(key) for key in keys])
    others = np.flatnonzero(~is_text)
    logger.warning(
        "%s: key %r is not UTF-8, so it names no patch and is left out (%s such keys)",
        remote.url,
        keys[int(others[0])],
        f"{others.size:,}",
    )
    return table.filter(pa.array(is_text))


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
