"""Open what a path or URL names: a published root, or the folder of an LMDB that is read like one; and layers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from reben_cloud.errors import NotFoundError
from reben_cloud.files.paths import local_path, split_scheme
from reben_cloud.root.backing import Backing, References, RootObjects
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.documents import read_manifest
from reben_cloud.root.layers import Layer, read_layer_manifest
from reben_cloud.root.layout import LAYER_MANIFEST
from reben_cloud.root.manifest import Manifest
from reben_cloud.root.references import options_for
from reben_cloud.store import Store, open_store


def open(
    url: str | os.PathLike[str],
    storage_options: Mapping[str, object] | None = None,
    *,
    layers: Sequence[str | os.PathLike[str] | Layer] = (),
) -> Dataset:
    """Open a published root, or a local folder with an exported (or rico-hdl's own) LMDB.

    Args:
        url: Path or URL of the root: a folder, ``file://``, ``s3://bucket/prefix``, ``https://``; or
            the folder of an LMDB, also as ``lmdb://PATH``.
        storage_options: Credentials and endpoint, as in `store.open_store`.
        layers: What is to stand beside it: paths or URLs of layers, to which `storage_options` go as well, or
            layers from `open_layer`, which have their own. A parquet or CSV file of this machine is made into a table
            layer in the cache folder first, as `write_table` does, and called after the file.

    Raises:
        NotFoundError: If there is no manifest, so no published dataset, or no layer.
        ChecksumError: If the manifest is damaged, or not that of a root.
        ConflictError: If a layer was made for another root.
        TypeError: If `layers` is one layer instead of a list.
        SourceError: If an LMDB has no metadata beside it, or not the one of its patches.
        RebenError: If a newer version has written it.
        StorageError: If the store cannot be reached or refuses.
    """
    if isinstance(layers, str | os.PathLike | Layer):
        raise TypeError(f"layers must be a list, such as [{layers!r:.80}]")
    dataset = _open(url, storage_options)
    found = [
        one if isinstance(one, Layer) else open_layer(one, storage_options, ds=dataset) for one in layers
    ]
    return dataset.with_layers(*found) if found else dataset


def open_layer(
    url: str | os.PathLike[str],
    storage_options: Mapping[str, object] | None = None,
    *,
    ds: Dataset | None = None,
) -> Layer:
    """Open a layer, to be handed to `open` or to `Dataset.with_layers`.

    Args:
        url: Path or URL of the layer, or the path of a parquet or CSV file.
        storage_options: Credentials and endpoint, as in `store.open_store`.
        ds: The root that a layer is made for where `url` is such a file.

    Raises:
        NotFoundError: If there is no published layer, or a file and no root that it is for.
        SourceError: If a file cannot be a layer as it is.
        ChecksumError: If what it says of itself is damaged.
        RebenError: If a newer version has written it.
        StorageError: If the store cannot be reached or refuses.
    """
    if (file := _local_file(url)) is not None:
        if ds is None:
            raise NotFoundError(
                f"{file} is a file and no layer; if it is a table, name the dataset that it is for (ds=), or make "
                "a layer of it (write_table, or `reben-cloud layer table`)"
            )
        from reben_cloud.layers.kept import layer_of_file  # late: it loads what a build needs

        return layer_of_file(file, ds)
    if (found := find_layer(url, storage_options)) is None:
        store = open_store(url, storage_options)
        if read_manifest(store) is not None:
            raise NotFoundError(f"{store.url} is a root and not a layer: `reben-cloud info {store.url}`")
        raise NotFoundError(
            f"{open_store(url, storage_options).url} has no {LAYER_MANIFEST}, so no layer is published there; "
            "check the URL, or finish writing it"
        )
    return found


def _local_file(url: str | os.PathLike[str]) -> Path | None:
    """The file of this machine that a path or URL names; None where it names something else, such as a folder."""
    if split_scheme(os.fspath(url))[0] not in (None, "file"):
        return None
    path = local_path(url, "a layer")
    return path if path.is_file() else None


def find_layer(
    url: str | os.PathLike[str], storage_options: Mapping[str, object] | None = None
) -> Layer | None:
    """The layer at a path or URL; None when it is something else. Raises as `open_layer` otherwise."""
    if os.fspath(url).startswith("lmdb://"):
        return None
    store = open_store(url, storage_options)
    manifest = read_layer_manifest(store)
    return None if manifest is None else Layer(store, manifest)


def _open(url: str | os.PathLike[str], storage_options: Mapping[str, object] | None) -> Dataset:
    store = None if os.fspath(url).startswith("lmdb://") else open_store(url, storage_options)
    if store is not None and (manifest := read_manifest(store)) is not None:
        return Dataset(store, manifest, backing=_backing(store, manifest))
    if store is None or store.is_local:
        from reben_cloud.export.opened import find_lmdb_root  # late: it loads what a build needs

        if (lmdb := find_lmdb_root(url)) is not None:
            return Dataset(lmdb.store, lmdb.manifest, backing=lmdb.backing)
    else:
        from reben_cloud.hosted.opened import open_hosted_root  # late, as above

        if (dataset := open_hosted_root(os.fspath(url), storage_options)) is not None:
            return dataset
    from reben_cloud.sources.instead import instead  # late, as above

    assert store is not None  # an lmdb:// URL without an LMDB was refused
    raise NotFoundError(instead(store))


def _backing(store: Store, manifest: Manifest) -> Backing:
    """What a root's payloads are read from."""
    if (objects := manifest.references) is None:
        return RootObjects()
    return References(objects=objects, storage_options=options_for(store, objects))
