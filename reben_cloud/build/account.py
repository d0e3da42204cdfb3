"""What a build has published and what it has not: its last line, and the same for a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud.bigearthnet.official import METADATA, other_metadata
from reben_cloud.bigearthnet.reben import whole
from reben_cloud.build.plan import JOURNAL, BuildPlan, is_root_of
from reben_cloud.root import layout
from reben_cloud.root.documents import read_manifest
from reben_cloud.root.manifest import Manifest
from reben_cloud.root.source import streamed
from reben_cloud.wording import counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Before:
    """What of a build was there before it was run."""

    is_published: bool = False
    """Whether the root was finished."""
    num_done: int = 0
    """Tasks that had left a receipt."""
    num_tasks: int = 0
    """All tasks."""

    @classmethod
    def of(cls, plan: BuildPlan) -> Before:
        """What is there now; a root of something else is not this build's, and `build` refuses it."""
        manifest = read_manifest(plan.store)
        if manifest is not None:
            return cls(is_published=is_root_of(plan.fingerprint, manifest, plan.store))
        return cls(num_done=num_done(plan), num_tasks=len(plan.tasks))

    @property
    def state(self) -> str:
        """``new``, ``continued``, or ``there`` if nothing was left to do."""
        return "there" if self.is_published else "continued" if self.num_done else "new"


def num_done(plan: BuildPlan) -> int:
    """How many of a plan's tasks have left a receipt."""
    return sum(1 for _ in plan.store.list(f"{JOURNAL}/{plan.fingerprint}"))


def published(manifest: Manifest, url: str, before: Before | None = None) -> str:
    """The last line of a build: where it is, how many patches, which modalities or not, and what was there before."""
    count, has = manifest.num_patches, manifest.modalities
    of = [f"{modality} {count:,}" for modality in has]
    of += [f"no {modality}" for modality in _all_modalities(manifest) if modality not in has]
    patches, before = counted(count, "patch", "patches"), before or Before()
    if before.is_published:
        return f"already there, nothing to do: {patches} at {url}: {', '.join(of)}"
    done = ""
    if before.num_done:
        done = f" (continued: {before.num_done:,} of {counted(before.num_tasks, 'task')} were done before)"
    return f"published {patches} at {url}: {', '.join(of)}{done}"


def _all_modalities(manifest: Manifest) -> tuple[str, ...]:
    """What the whole dataset has, of which a root may hold a part."""
    return whole(manifest.schema).modality_names


def rows_without_patches(plan: BuildPlan, official: pa.Table) -> pa.Array:
    """Patch ids that the metadata has and the build does not, sorted; of a build of a part they are most."""
    ids = official.column("patch_id").combine_chunks()
    return ids.filter(pc.invert(pc.is_in(ids, plan.table.column("patch_id").combine_chunks())))


def rows_without_patches_text(plan: BuildPlan, official: pa.Table, *, is_written: bool = True) -> str:
    """How many rows have no patch and why, in words; empty if all have one.

    Args:
        plan: Of the build.
        official: The metadata.
        is_written: Whether the plan is carried out, so that the root lists what is left out.
    """
    num_incomplete, found = len(plan.matched.incomplete), []
    rows = rows_without_patches(plan, official)
    absent = rows.filter(pc.invert(pc.is_in(rows, pa.array(list(plan.matched.incomplete), pa.string()))))
    if len(absent):
        have = "has" if len(absent) == 1 else "have"
        of = f"{len(absent):,} of {official.num_rows:,} rows of the metadata"
        found.append(f"{of} {have} no patch in the source, the first is {absent[0]}")
    if num_incomplete:
        patches = (
            "1 incomplete patch is" if num_incomplete == 1 else f"{num_incomplete:,} incomplete patches are"
        )
        where = f", and listed in {plan.store.url}/{layout.INCOMPLETE}" if is_written else ""
        found.append(f"{patches} left out{where}")
    return "; ".join(found)


def not_taken(plan: BuildPlan, official: pa.Table) -> str:
    """What the source has, or may have, and the metadata have no row of, in words; empty if there is nothing to say."""
    unlisted, other = plan.matched.unlisted_text(), other_metadata(official)
    is_unknown = bool(streamed(plan.source))  # what is in archives is only known once they are read
    if other is None or not (unlisted or is_unknown):
        return unlisted
    without = "with" if other == METADATA else "without"
    hint = (
        f"the metadata have only patches {without} snow, cloud or shadow; all others are in {other}: put it beside, or "
        "name both files (--metadata)"
    )
    return f"{unlisted}; {hint}" if unlisted else hint


def account(
    manifest: Manifest, plan: BuildPlan, official: pa.Table, before: Before | None = None
) -> dict[str, Any]:
    """The manifest, and what a machine wants to know beside it.

    Returns:
        The manifest's entries and: ``url`` of the root; ``state``, ``new``, ``continued`` or ``there`` (nothing was
        left to do); ``published``, patches of each modality; ``absent``, the
        modalities of the whole dataset that the root lacks; ``metadata_rows_without_patch``, how many rows of the
        metadata were not published, as the source has nothing of them, not all, or a search left them out;
        ``num_incomplete``, how many lack a modality; ``not_in_metadata``, how many patches of the source (by modality)
        have no row, as far as that is known without reading archives.
    """
    return {
        **manifest.to_json(),
        "url": plan.store.url,
        "state": (before or Before()).state,
        "published": dict.fromkeys(manifest.modalities, manifest.num_patches),
        "absent": [name for name in _all_modalities(manifest) if name not in manifest.modalities],
        "metadata_rows_without_patch": len(rows_without_patches(plan, official)),
        "num_incomplete": len(plan.matched.incomplete),
        "not_in_metadata": {modality: count for modality, (_, count) in plan.matched.unlisted.items()},
    }
