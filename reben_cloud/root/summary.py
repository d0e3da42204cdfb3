"""What a dataset holds, in lines for people that are at most 80 characters wide where words allow it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from reben_cloud.bigearthnet.reben import whole
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.layout import INCOMPLETE
from reben_cloud.wording import counted, wrapped

if TYPE_CHECKING:
    from reben_cloud.root.dataset import Dataset


def summary(dataset: Dataset) -> str:
    """What a root or an opened export is made of: modalities, groups of shards, order, layers, and what it lacks."""
    manifest = dataset.manifest
    products = counted(len(dataset.products), "product")
    head = f"{dataset.url}: {counted(len(dataset), 'patch', 'patches')} of {products}"
    rows: list[tuple[str, str | Sequence[str]]] = []
    if isinstance(manifest, ExportManifest):
        num_whole = sum(group.num_samples for group in manifest.groups.values())
        rows.append(
            ("export", f"{len(dataset):,} of the {num_whole:,} patches of root {manifest.fingerprint}")
        )
        # An export keeps the root's groups, from which the order follows, beside what it has of them.
        groups = [f"{name} {count:,}" for name, count in manifest.exported_groups.items()]
    else:
        groups = [
            f"{name} {group.num_samples:,} in {counted(group.num_shards, 'shard')}"
            for name, group in manifest.groups.items()
        ]
    rows += [
        ("modalities", ", ".join(dataset.modalities) or "none: metadata alone"),
        ("groups", groups or "none"),
        ("order", f"{manifest.order.kind}, seed {manifest.order.seed}"),
        ("made from", manifest.created_from),
        ("fingerprint", manifest.fingerprint),
        *(("layer", text) for text in _layers(dataset)),
        *_lacking(dataset),
    ]
    return "\n".join([head, *wrapped(rows)])


def _layers(dataset: Dataset) -> Iterator[str]:
    """Each layer that is in an export, and each that stands beside it."""
    if isinstance(dataset.manifest, ExportManifest):
        yield from dataset.manifest.layer_lines()
    yield from (layer.summary() for layer in dataset.layers.values())


def _lacking(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """What a root has not: patches that were incomplete, and maps, which for hosted LMDBs lie elsewhere."""
    manifest = dataset.manifest
    if isinstance(manifest, ExportManifest):
        return
    if (left_out := manifest.incomplete) is not None:
        patches = counted(left_out.num_patches, "incomplete patch", "incomplete patches")
        yield "left out", f"{patches} of the source, listed in {INCOMPLETE}"
    if (
        dataset.modalities
        and dataset.schema.map_array is None
        and whole(dataset.schema).map_array is not None
    ):
        yield (
            "lacks",
            f"maps: `reben-cloud layer maps Reference_Maps.tar.zst {dataset.url} LAYER` adds them as a layer",
        )
