"""A hosted LMDB opened like a root at once: its tables are those of the reference root that an index would make."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property

import pyarrow as pa

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import make_plan, rows_without_patches_text
from reben_cloud.build.plan import BuildPlan
from reben_cloud.errors import NotFoundError
from reben_cloud.export.opened import MadeRoot
from reben_cloud.hosted.finder import LmdbFinder
from reben_cloud.hosted.indexed import IndexedSource
from reben_cloud.hosted.lmdb import HostedLmdb, find_hosted
from reben_cloud.root.backing import References
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layout import INCOMPLETE, MANIFEST
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.root.selection import Selection
from reben_cloud.sources.found import FoundSource
from reben_cloud.store import Store, open_store

logger = logging.getLogger(__name__)


class HostedRoot(MadeRoot):
    """The place of a hosted LMDB, as if ``patches.parquet`` lay there.

    Args:
        url: Where it is.
        storage_options: Credentials and endpoint.
    """

    def __getstate__(self) -> dict[str, object]:
        # What a branch names may be another dataset by the time another process opens it.
        return {**super().__getstate__(), "url": self._pinned._address}

    @cached_property
    def _pinned(self) -> Store:
        return open_store(self._address, self.storage_options).pinned()

    @cached_property
    def hosted(self) -> HostedLmdb | None:
        """The LMDB; None if there is none."""
        return find_hosted(self._pinned)

    @cached_property
    def backing(self) -> References:
        """What payloads are read from.

        Raises:
            NotFoundError: If there is no LMDB any more.
        """
        if self.hosted is None:
            raise NotFoundError(f"{self.url}: there is no LMDB (data.mdb) any more")
        remote = self.hosted.describe()
        finder = LmdbFinder(self.hosted, remote)
        return References(objects=(remote,), storage_options=self.storage_options, finder=finder)

    @cached_property
    def _plan(self) -> BuildPlan:
        assert self.hosted is not None
        official = self.hosted.read_metadata()
        source = self._source(official)
        options = PlacementOptions(order="stored")
        # Nobody but its host can complete it: what is whole can be used.
        plan = make_plan(
            source, official, open_store("memory://lmdb-root"), options=options, incomplete="skip"
        )
        if text := rows_without_patches_text(plan, official, is_written=False):
            logger.warning("%s: %s", self.hosted.url, text)
        return plan

    def _source(self, official: pa.Table) -> FoundSource:
        """The LMDB as a source; its names are listed only where it has fewer records than the metadata ask for."""
        finder = self.backing.finder
        assert isinstance(finder, LmdbFinder)
        held = _held(finder, official)
        if held and finder.num_records >= official.num_rows * len(held):
            return FoundSource(self.backing, held)
        if not held and finder.num_records >= official.num_rows:
            raise NotFoundError(
                f"{finder.remote.url} has no record {official.column('patch_id')[0].as_py()!r}: the metadata beside it "
                "are not of its patches, or it has another form; index it with its own metadata (reben-cloud index "
                "--metadata)"
            )
        names = IndexedSource(finder.list_all()).names()
        return FoundSource(self.backing, tuple(names), listed=names)

    def get(self, path: str, *, version: str | None = None) -> memoryview:
        """As `Store.get`; patches that are left out stand where a root has them."""
        if path == INCOMPLETE and self._plan.matched.incomplete:
            return memoryview(self._plan.matched.incomplete_csv())
        return super().get(path, version=version)


def open_hosted_root(url: str, storage_options: Mapping[str, object] | None) -> Dataset | None:
    """The LMDB hosted at a URL; None if there is none.

    Raises:
        NotFoundError: If it does not have the patches of the metadata beside it.
        SourceError: If there is no metadata beside it, or several LMDBs are there.
        StorageError: If the store cannot be reached or refuses.
    """
    root = HostedRoot(url, storage_options)
    if root.hosted is None:
        return None
    return Dataset(root, root.manifest, backing=root.backing)


def open_if_hosted(url: str, storage_options: Mapping[str, object] | None) -> Dataset | None:
    """The LMDB on another machine that a URL names; None if it names none. Raises as `open_hosted_root`."""
    if url.startswith("synthetic:") or (store := open_store(url, storage_options)).is_local:
        return None
    return None if store.exists(MANIFEST) else open_hosted_root(url, storage_options)


def open_hosted_source(
    url: str, storage_options: Mapping[str, object] | None, *, wanted: Selection
) -> FoundSource | None:
    """The LMDB hosted at a URL as a source of some patches, which are looked up together; None if there is none.

    One of them that it lacks is told when it is read. Raises as `open_hosted_root`.
    """
    dataset = open_if_hosted(url, storage_options)
    if dataset is None:
        return None
    assert isinstance(dataset.backing, References)
    source = FoundSource(dataset.backing, dataset.modalities)
    with suppress(NotFoundError):
        source.look_up(wanted.official(), source.held)
    return source


def _held(finder: LmdbFinder, official: pa.Table) -> tuple[str, ...]:
    """The modalities that an LMDB has of the first, the middle or the last patch of the metadata."""
    probes = sorted({0, official.num_rows // 2, official.num_rows - 1})
    rows = official.take(pa.array(probes, pa.int64())).to_pylist()
    return tuple(m.name for m in REBEN.modalities if any(_is_there(finder, m.key(row)) for row in rows))


def _is_there(finder: LmdbFinder, key: str) -> bool:
    try:
        finder.find([key])
    except NotFoundError:
        return False
    return True
