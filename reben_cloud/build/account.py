"""What a build has published and what it has not: its last line, and the same for a machine."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud.bigearthnet.reben import whole
from reben_cloud.build.plan import BuildPlan
from reben_cloud.root.manifest import Manifest


def published(manifest: Manifest, url: str) -> str:
    """The last line of a build: where it is, how many patches, which modalities, and which not."""
    count, has = manifest.num_patches, manifest.modalities
    lacking = "".join(f", no {modality}" for modality in _all_modalities(manifest) if modality not in has)
    return (
        f"published {count:,} patches at {url}: "
        + ", ".join(f"{modality} {count:,}" for modality in has)
        + lacking
    )


def _all_modalities(manifest: Manifest) -> tuple[str, ...]:
    """What the whole dataset has, of which a root may hold a part."""
    return whole(manifest.schema).modality_names


def rows_without_patches(plan: BuildPlan, official: pa.Table) -> pa.Array:
    """Patch ids that the metadata has and the build does not, sorted; of a build of a part they are most."""
    ids = official.column("patch_id").combine_chunks()
    return ids.filter(pc.invert(pc.is_in(ids, plan.table.column("patch_id").combine_chunks())))


def account(manifest: Manifest, plan: BuildPlan, official: pa.Table) -> dict[str, Any]:
    """The manifest, and what a machine wants to know beside it.

    Returns:
        The manifest's entries and: ``url`` of the root; ``published``, patches of each modality; ``absent``, the
        modalities of the whole dataset that the root lacks; ``metadata_rows_without_patch``, how many rows of the
        metadata were not published, as the source has nothing of them or a search left them out.
    """
    return {
        **manifest.to_json(),
        "url": plan.store.url,
        "published": dict.fromkeys(manifest.modalities, manifest.num_patches),
        "absent": [name for name in _all_modalities(manifest) if name not in manifest.modalities],
        "metadata_rows_without_patch": len(rows_without_patches(plan, official)),
    }
