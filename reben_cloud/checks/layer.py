"""A layer against what it says of itself: its document, then its tables and shards; and against its root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from reben_cloud.checks.layer_records import record_checks
from reben_cloud.checks.layer_tables import LayerRows
from reben_cloud.checks.objects import Check, check_presence, checksum_checks, listed_objects
from reben_cloud.errors import (
    ChecksumError,
    NotFoundError,
    RebenError,
    StorageError,
    UnreachableError,
)
from reben_cloud.formats import parquet
from reben_cloud.formats.parquet import Seal
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layer_manifest import LayerManifest
from reben_cloud.root.layers import Layer
from reben_cloud.root.manifest import InvalidManifestError
from reben_cloud.root.objects import Objects


class LayerSeen(NamedTuple):
    """What a glance at a layer tells."""

    sizes: list[int]
    """Bytes of each of its objects."""
    problems: list[str]
    """What is wrong."""
    checks: dict[str, list[Check]]
    """What is left to be looked at, by what is done; to be run in this order."""


def look_at_layer(layer: Layer, root: Dataset | None, *, quick: bool, deep: bool) -> LayerSeen:
    """What is wrong with a layer at a glance, and what else is to be looked at.

    Args:
        layer: The layer.
        root: What it stands beside, itself without layers; None compares it with nothing but itself.
        quick: Look at presence and sizes only.
        deep: Also decode every shard.
    """
    layer = Layer(layer.store, layer.manifest)  # with nothing read yet
    said = layer.manifest
    problems = _check_document(layer)
    seals = {layout.ROWS: said.rows_parquet} | ({layout.INDEX: s} if (s := said.index_parquet) else {})
    sizes = {path: seal.nbytes for path, seal in seals.items()}
    objects = Objects()
    unlisted = [layout.LAYER_MANIFEST]
    if said.objects_sha256 is not None:
        objects, faults = listed_objects(layer.store, said.objects_sha256)
        problems += faults
        sizes = {**sizes, **{path: one.nbytes for path, one in objects.items()}}
        unlisted.append(layout.OBJECTS)
    problems += check_presence(layer.store, sizes, unlisted)
    if root is not None and said.fingerprint != root.manifest.fingerprint:
        problems.append(
            f"{layout.LAYER_MANIFEST}: it was made for the root {said.fingerprint}, not for {root.manifest.fingerprint}"
        )
        root = None
    checks: dict[str, list[Check]] = {}
    if not quick:
        checks["checksums"] = [
            *checksum_checks(layer.store, objects),
            *(_SealCheck(layer, path, seal) for path, seal in seals.items()),
        ]
        try:
            rows = LayerRows.of(layer)
            problems += rows.problems(objects)
        except (NotFoundError, ChecksumError, KeyError) as error:
            problems.append(f"its tables cannot be read ({error}); records were not compared")
        else:
            problems += [] if root is None else rows.problems_with(root)
            if deep and rows.places is not None and layer.modality is not None:
                checks.update(record_checks(layer, layer.modality, rows, root))
    return LayerSeen(list(sizes.values()), problems, checks)


def _check_document(layer: Layer) -> list[str]:
    """Whether ``layer.json`` is whole, and still what it was when the layer was opened."""
    name = layout.LAYER_MANIFEST
    try:
        text = bytes(layer.store.get(name))
        found = LayerManifest.from_bytes(text, where=layer.url)
    except FileNotFoundError:
        return [f"{name}: missing, so nothing is published here"]
    except (InvalidManifestError, RebenError) as error:
        return [f"{name}: damaged: {error}"]
    if found != layer.manifest:
        return [f"{name}: another one than when the layer was opened"]
    if text != found.to_bytes():
        return [f"{name}: says what it must, but not in the bytes that were written"]
    return []


@dataclass(frozen=True, slots=True)
class _SealCheck:
    """Compare every byte of a table with its seal."""

    layer: Layer
    path: str
    seal: Seal

    def __call__(self) -> list[str]:
        try:
            parquet.check_sealed(self.layer.store.get(self.path), self.seal, name=self.path)
        except FileNotFoundError:
            return []  # said already
        except UnreachableError:
            raise
        except (ChecksumError, StorageError) as error:
            return [str(error)]
        return []
