"""What stands between this machine and a root: versions, disk, memory, credentials, endpoint, clock.

Each check is one finding with a way out. It changes nothing in the store, unless asked to try a
write, which leaves nothing behind. It knows nothing of what a root holds beyond its manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reben_cloud.checks.access import look_at_credentials, look_at_endpoint, try_reading, try_writing
from reben_cloud.checks.files import look_at_files
from reben_cloud.checks.finding import Finding
from reben_cloud.checks.machine import look_at_resources, look_at_versions
from reben_cloud.errors import RebenError
from reben_cloud.export import find_damage
from reben_cloud.export.opened import LmdbRoot, find_exported_files, find_lmdb_root
from reben_cloud.files.paths import split_scheme
from reben_cloud.hosted.opened import open_if_hosted
from reben_cloud.root.exported import ExportManifest
from reben_cloud.store import open_store


def diagnose(
    root: str | None = None,
    storage_options: Mapping[str, object] | None = None,
    *,
    try_write: bool = False,
) -> Iterator[Finding]:
    """Look at this machine, and at the store of `root` when one is given.

    Args:
        root: Path or URL of a root, or of where one is to be, or the folder of an LMDB.
        storage_options: As in `open_store`.
        try_write: Also write, overwrite conditionally and delete one small object beside the root.

    Yields:
        Findings in the order in which one would ask.
    """
    yield from look_at_versions()
    yield from look_at_resources(Path(root) if root and split_scheme(root)[0] is None else Path.cwd())
    if root is None:
        return
    try:
        if (files := find_exported_files(root)) is not None:
            yield look_at_files(files)
            return
        lmdb = find_lmdb_root(root)
    except RebenError as error:
        yield Finding(level="problem", subject="root", detail=str(error))
        return
    if lmdb is not None:
        yield from _lmdb(lmdb)
        return
    store = open_store(root, storage_options)
    if store.url.startswith("s3://"):
        yield look_at_credentials(storage_options or {})
        reached = list(look_at_endpoint(storage_options or {}))
        yield from reached
        if any(finding.level == "problem" for finding in reached):
            return
    try:
        hosted = open_if_hosted(root, storage_options)
    except RebenError as error:
        yield Finding(level="problem", subject="root", detail=str(error))
        return
    if hosted is None:
        yield from try_reading(store)
    else:  # pages of it have been read, so it answers ranges
        detail = f"{hosted.url} is a hosted LMDB of {len(hosted):,} patches ({', '.join(hosted.modalities)})"
        yield Finding(level="ok", subject="root", detail=detail)
    if try_write:
        yield from try_writing(store)


def _lmdb(root: LmdbRoot) -> Iterator[Finding]:
    said = root.manifest
    damage = find_damage(Path(root.backing.path), said) if isinstance(said, ExportManifest) else None
    try:
        from reben_cloud.formats import lmdb

        num_records = lmdb.num_records(root.backing.path)
    except RebenError as error:
        damage = damage or str(error)
    if damage:
        yield Finding(
            level="problem",
            subject="root",
            detail=f"{root.backing.path}: {damage}",
            advice="run the same reben-cloud export again, or copy the folder again",
        )
    else:
        yield Finding(
            level="ok", subject="root", detail=f"{root.backing.path} is an LMDB of {num_records:,} records"
        )
