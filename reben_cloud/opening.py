"""Open what a path or URL names: a published root, or the folder of an LMDB that is read like one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from reben_cloud.errors import NotFoundError
from reben_cloud.root.backing import Backing, References, RootObjects
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.documents import read_manifest
from reben_cloud.root.layout import MANIFEST
from reben_cloud.root.manifest import Manifest
from reben_cloud.root.references import options_for
from reben_cloud.store import Store, open_store


def open(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Dataset:
    """Open a published root, or a local folder with an exported (or rico-hdl's own) LMDB.

    Args:
        url: Path or URL of the root: a folder, ``file://``, ``s3://bucket/prefix``, ``https://``; or
            the folder of an LMDB, also as ``lmdb://PATH``.
        storage_options: Credentials and endpoint, as in `store.open_store`.

    Raises:
        NotFoundError: If there is no manifest, so no published dataset.
        ChecksumError: If the manifest is damaged, or not that of a root.
        SourceError: If an LMDB has no metadata beside it, or not the one of its patches.
        RebenError: If a newer version has written it.
        StorageError: If the store cannot be reached or refuses.
    """
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
    raise NotFoundError(
        f"{url if store is None else store.url} has no {MANIFEST}, so no dataset is published there; "
        "check the URL, or finish the build (run `reben-cloud build` again)"
    )


def _backing(store: Store, manifest: Manifest) -> Backing:
    """What a root's payloads are read from."""
    if (objects := manifest.references) is None:
        return RootObjects()
    return References(objects=objects, storage_options=options_for(store, objects))
