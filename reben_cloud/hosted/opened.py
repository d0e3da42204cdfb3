"""A hosted LMDB opened like a root at once: its tables are those of the reference root that an index would make."""

from __future__ import annotations

from functools import cached_property

import pyarrow as pa

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import make_plan
from reben_cloud.build.plan import BuildPlan
from reben_cloud.errors import NotFoundError
from reben_cloud.export.opened import MadeRoot
from reben_cloud.hosted.finder import HostedSource, open_hosted
from reben_cloud.hosted.lmdb import find_hosted
from reben_cloud.root.backing import References
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.store import Store, open_store


class HostedRoot(MadeRoot):
    """The place of a hosted LMDB, as if ``patches.parquet`` lay there."""

    @cached_property
    def source(self) -> HostedSource:
        """The LMDB."""
        return self._found[0]

    @cached_property
    def _found(self) -> tuple[HostedSource, pa.Table]:
        hosted = find_hosted(open_store(self._address, self.storage_options))
        if hosted is None:
            raise NotFoundError(f"{self.url}: there is no LMDB (data.mdb) any more")
        official = hosted.read_metadata()
        first = official.slice(0, 1).to_pylist()[0]
        return open_hosted(
            hosted, {m.name: m.key(first) for m in REBEN.modalities}, self.storage_options
        ), official

    @cached_property
    def _plan(self) -> BuildPlan:
        source, official = self._found
        options = PlacementOptions(order="stored")
        return make_plan(source, official, open_store("memory://lmdb-root"), options=options)


def open_hosted_root(store: Store) -> Dataset | None:
    """The LMDB hosted at a URL; None if there is none.

    Raises:
        NotFoundError: If it does not have the patches of the metadata beside it.
        SourceError: If there is no metadata beside it, or several LMDBs are there.
        StorageError: If the store cannot be reached or refuses.
    """
    if find_hosted(store) is None:
        return None
    root = HostedRoot(store._address, store.storage_options)
    finder = root.source.finder
    backing = References(objects=(finder.remote,), storage_options=store.storage_options, finder=finder)
    return Dataset(root, root.manifest, backing=backing)
