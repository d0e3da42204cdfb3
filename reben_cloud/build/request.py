"""What a user asks to have built: source and root as paths or URLs, and what a search found, made a plan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from reben_cloud.build.matching import read_incomplete
from reben_cloud.build.plan import BuildPlan, make_plan
from reben_cloud.errors import SourceError
from reben_cloud.root.backing import References
from reben_cloud.root.layout import INCOMPLETE
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.root.source import AnySource, Incomplete
from reben_cloud.sources.found import FoundSource
from reben_cloud.sources.recognise import default_scratch, open_source
from reben_cloud.store import open_store
from reben_cloud.wording import counted

if TYPE_CHECKING:
    from reben_cloud.root.dataset import Dataset
    from reben_cloud.root.selection import Selection


def open_plan(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    root: str | os.PathLike[str],
    *,
    only: Selection | None = None,
    modalities: Sequence[str] | None = None,
    metadata_paths: Sequence[str | os.PathLike[str]] = (),
    options: PlacementOptions | None = None,
    scratch: Path | None = None,
    incomplete: Incomplete = "refuse",
    storage_options: Mapping[str, object] | None = None,
) -> tuple[BuildPlan, pa.Table]:
    """Recognise a source and plan a root of it; nothing is written.

    Args:
        source: Archives, folders, an LMDB, a root, or ``synthetic:N``, as `sources.recognise.open_source` takes it;
            several of them are merged; not looked at when `only` is of a hosted LMDB, which is then the source.
        root: Path or URL of the root to be.
        only: What to build of it, found by a search in the source; everything by default.
        modalities: What to build; all that the source has by default.
        metadata_paths: Official metadata files, when they are not beside the source.
        options: Write-time order and size of the shards.
        scratch: Folder for payloads of archives; one below the temporary folder by default.
        incomplete: What to do about patches that lack a modality: ``"refuse"``, or ``"skip"`` to leave them out, which
            the manifest says.
        storage_options: Credentials and endpoint of source and root, as in `store.open_store`.

    Returns:
        The plan, and the official metadata: of the plan's patches and perhaps many more.

    Raises:
        NotFoundError: If `only` is empty.
        SourceError: If the source is not recognised, or as `make_plan`.
        ValueError: If a modality is unknown, or metadata files are named for a hosted LMDB.
    """
    if only is not None:
        only.require_patches("nothing to build")
        only.refuse_repeats("a build")
    hosted = None if only is None else only.dataset.backing
    found: AnySource
    left_out: Mapping[str, tuple[str, ...]] = {}
    if only is not None and isinstance(hosted, References) and hosted.finder is not None:
        if metadata_paths:
            raise ValueError(
                f"{only.dataset.url} is opened with the metadata beside it; to take others, index it with them "
                "(reben-cloud index URL ROOT --metadata FILE) and build from the index"
            )
        found, official = FoundSource(hosted, only.dataset.modalities), only.official()
        left_out = _left_out(only.dataset, incomplete)
    else:
        found, official = open_source(
            source,
            metadata_paths=metadata_paths,
            modalities=modalities,
            incomplete=incomplete,
            storage_options=storage_options,
        )
    plan = make_plan(
        found,
        official,
        open_store(root, storage_options),
        modalities=modalities,
        options=options,
        scratch=scratch or default_scratch(found),
        only=None if only is None else only.patch_ids,
        incomplete=incomplete,
    )
    if left_out:
        plan = replace(plan, matched=replace(plan.matched, incomplete=left_out))
    if isinstance(found, FoundSource):
        found.look_up(plan.table, plan.modalities)
    return plan, official


def _left_out(hosted: Dataset, incomplete: Incomplete) -> Mapping[str, tuple[str, ...]]:
    """Patches that a hosted LMDB lacks a modality of -> what they lack; it was opened without them."""
    if (left_out := hosted.manifest.incomplete) is None:
        return {}
    if incomplete == "refuse":
        patches = counted(left_out.num_patches, "patch", "patches")
        raise SourceError(
            f"{hosted.url} lacks a modality of {patches}, such as {left_out.first[0]}; leave them out of the root "
            "(build --incomplete skip; incomplete='skip' in Python), or make an index of what every patch has "
            "(reben-cloud index --modality) and build from it"
        )
    return read_incomplete(hosted.store.get(INCOMPLETE))
