"""Which patches a build takes: the metadata's rows whose patch the source has in every modality that is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.errors import SourceError
from reben_cloud.root.manifest import LeftOut
from reben_cloud.root.source import Incomplete
from reben_cloud.schema import Buffer, Modality, check_names
from reben_cloud.wording import counted

_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """What of a source and its metadata belongs together, and what does not."""

    rows: pa.Table
    """Metadata of the patches that are whole."""
    incomplete: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Patch that is left out -> the modalities that it lacks; by patch id."""
    unlisted: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Modality -> (first, number) of the names that the source has and no row of the metadata; they are not built."""

    def left_out(self) -> LeftOut | None:
        """What a manifest says of the patches that are left out; None if none is."""
        if not self.incomplete:
            return None
        return LeftOut(num_patches=len(self.incomplete), first=tuple(list(self.incomplete)[:_SHOWN]))

    def incomplete_csv(self) -> bytes:
        """Each patch that is left out with what it lacks, a line per patch."""
        lines = [f"{patch_id},{' '.join(lacking)}" for patch_id, lacking in self.incomplete.items()]
        return "\n".join(["patch_id,lacks", *lines, ""]).encode()

    def incomplete_text(self) -> str:
        """How many patches are left out, to go on with after a message; empty if none is."""
        if not self.incomplete:
            return ""
        first, lacking = next(iter(self.incomplete.items()))
        patches = counted(len(self.incomplete), "patch is", "patches are")
        return f"; {patches} incomplete, the first is {first}, which lacks {' and '.join(lacking)}"

    def unlisted_text(self) -> str:
        """What the source has beyond the metadata, in words; empty if nothing."""
        texts = []
        for modality, (first, count) in self.unlisted.items():
            patches = counted(count, f"{modality} patch is", f"{modality} patches are")
            texts.append(
                f"{patches} in the source and in no row of the metadata, and not taken; the first is {first}"
            )
        return "; ".join(texts)


def read_incomplete(data: Buffer) -> dict[str, tuple[str, ...]]:
    """What `Matched.incomplete_csv` wrote: patch that is left out -> the modalities that it lacks."""
    rows = (row.partition(",") for row in bytes(data).decode().splitlines()[1:])
    return {patch_id: tuple(lacks.split()) for patch_id, _, lacks in rows}


def match(
    names: Mapping[str, Sequence[str] | None],
    metadata: pa.Table,
    modalities: Sequence[Modality],
    where: str,
    *,
    incomplete: Incomplete,
) -> Matched:
    """The rows of the metadata that a root can be made of.

    Args:
        names: Modality -> the names that the source has, as `root.source.AnySource.names`.
        metadata: Rows of the source's patches, of fewer (then they are a selection) or of more.
        modalities: What every patch is to have.
        where: The source, in words.
        incomplete: What to do about patches that lack one of `modalities`.

    Raises:
        ValueError: If `incomplete` is something else.
        SourceError: If the source lacks a modality altogether, has none of the metadata's patches, or patches are
            incomplete and not to be skipped.
    """
    check_names([incomplete], get_args(Incomplete), "way with incomplete patches")
    held: dict[str, NDArray[np.bool_]] = {}
    unlisted: dict[str, tuple[str, int]] = {}
    for modality in modalities:
        name, column = modality.name, modality.key_column
        if name not in names:
            raise SourceError(f"{where} has no {name}; it has {', '.join(names) or 'nothing'}")
        listed = names[name]
        if listed is not None and not len(listed):
            raise SourceError(_none_whole(name, names, where))
        if listed is None:
            held[name] = np.ones(metadata.num_rows, np.bool_)
            continue
        array = listed if isinstance(listed, pa.Array) else pa.array(listed, pa.string())
        found = array.take(pc.array_sort_indices(array))
        unknown = found.filter(pc.invert(pc.is_in(found, metadata.column(column).combine_chunks())))
        if len(unknown) == len(found):
            what = "is in no row" if column == "patch_id" else "pairs with no patch"
            raise SourceError(
                f"{unknown[0]}: this {name} name of {where} {what} of the metadata, nor does any other "
                f"({len(unknown):,} such names); is it the right metadata file (--metadata)?"
            )
        if len(unknown):
            unlisted[name] = (unknown[0].as_py(), len(unknown))
        held[name] = pc.is_in(metadata.column(column), found).to_numpy()
    everywhere = np.logical_and.reduce(list(held.values()))
    partial = _partial(held, metadata.column("patch_id"))
    if partial and incomplete == "refuse":
        raise SourceError(_refusal(partial, held, int(everywhere.sum()), where))
    rows = metadata.filter(pa.array(everywhere)).combine_chunks()
    return Matched(rows=rows, incomplete=partial, unlisted=unlisted)


def _partial(held: Mapping[str, NDArray[np.bool_]], ids: pa.ChunkedArray) -> dict[str, tuple[str, ...]]:
    """Patches that have some modalities and not all -> what they lack, by patch id."""
    there = np.stack(list(held.values()))
    rows = np.flatnonzero(there.any(0) & ~there.all(0))
    names, modalities = ids.take(pa.array(rows)).to_pylist(), list(held)
    found = {
        name: tuple(m for m, has in zip(modalities, column, strict=True) if not has)
        for name, column in zip(names, there[:, rows].T.tolist(), strict=True)
    }
    return dict(sorted(found.items()))


def _none_whole(modality: str, names: Mapping[str, Sequence[str] | None], where: str) -> str:
    others = " ".join(f"--modality {m}" for m, listed in names.items() if listed is None or len(listed))
    without = f", or build without it ({others})" if others else ""
    return f"{where}: no {modality} patch there has all of its files; complete the source{without}"


def _refusal(
    partial: Mapping[str, tuple[str, ...]], held: Mapping[str, NDArray[np.bool_]], num_whole: int, where: str
) -> str:
    counts = {m: sum(m in lacking for lacking in partial.values()) for m in held}
    lacks = ", ".join(counted(count, f"lacks {m}", f"lack {m}") for m, count in counts.items() if count)
    more = f" and {len(partial) - _SHOWN:,} more" if len(partial) > _SHOWN else ""
    patches = counted(len(partial), "patch is", "patches are")
    return (
        f"{where}: {patches} incomplete ({lacks}), {num_whole:,} complete: {', '.join(list(partial)[:_SHOWN])}{more}. "
        "Complete the source, leave them out of a root (build --incomplete skip; incomplete='skip' in Python), or "
        "build only what "
        "every patch has (--modality)"
    )
