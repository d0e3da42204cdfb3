"""The root that a preparation ends in: claimed before hours go into it, built after, and the folders between."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from reben_cloud.build import Executor, Progress, build, make_plan, silent
from reben_cloud.errors import ConflictError, SourceError
from reben_cloud.files.scratch import private_scratch
from reben_cloud.root.commit import begin
from reben_cloud.root.documents import read_manifest
from reben_cloud.root.layout import JOURNAL, MANIFEST
from reben_cloud.root.manifest import Manifest
from reben_cloud.scenes.metadata import EXTRA_METADATA, METADATA
from reben_cloud.scenes.provenance import differences
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import Store

_OPTIONS = f"{JOURNAL}/prepared"
"""Object with the options of the preparation that a root comes from."""

_INPUTS = f"{JOURNAL}/prepared-from"
"""Object with the identity of its inputs; written when all of them are prepared."""


def claim_root(store: Store, options: Mapping[str, object], inputs: Mapping[str, str]) -> Manifest | None:
    """Make an empty root that of a preparation, before hours go into what it cannot take.

    Args:
        store: The root to be.
        options: All that was given, by the name of the option; the same again continues.
        inputs: Identity of all files among it, as `provenance.identify` gives it; one that could not be
            prepared may be mended and the same options given again.

    Returns:
        The manifest if the root is published already, from the same inputs.

    Raises:
        ConflictError: If the root holds anything else.
    """
    ours = {name: str(value) for name, value in options.items()}
    if next(iter(store.list()), None) is None and begin(store, _OPTIONS, json.dumps(ours).encode()):
        return None
    way_out = "repeat those it was begun with, or take an empty root"
    foreign = f"{store.url} is not empty, and was not begun with these inputs and options"
    if not store.exists(_OPTIONS):
        raise ConflictError(f"{foreign}; {way_out}")
    for path, now in ((_OPTIONS, ours), (_INPUTS, inputs)):
        if path == _INPUTS and not store.exists(path):
            if store.exists(MANIFEST):
                raise ConflictError(f"{foreign}: nothing says from which; {way_out}")
            return None
        try:
            before = json.loads(bytes(store.get(path)))
        except json.JSONDecodeError:
            raise ConflictError(f"{foreign}: an earlier version began it; {way_out}") from None
        if changed := differences(before, now):
            raise ConflictError(f"{foreign}: {changed}; {way_out}")
    return read_manifest(store)


def prepared_folder(store: Store) -> Path:
    """Where the folders lie from which a root is built: beside a local root, else in the private scratch folder."""
    local = store.local_path()
    if local is not None:
        return local.with_name(f"{local.name}.prepared")
    name = hashlib.sha256(store.url.encode()).hexdigest()[:16]
    return private_scratch() / f"prepared-{name}"


def build_root(
    folder: str | os.PathLike[str],
    store: Store,
    *,
    inputs: Mapping[str, str] | None = None,
    executor: Executor | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> Manifest:
    """Build a root from what `prepare` has written; the ordinary build.

    Args:
        folder: What `prepare` wrote.
        store: The root to be.
        inputs: What it was made from, for `claim_root` to compare when the same is asked for again.
        executor: Where the root is built.
        workers: Local processes, when no executor is given.
        progress: Wraps the stream of finished tasks.

    Returns:
        The manifest.

    Raises:
        SourceError: If no patch was kept.
        ConflictError, StorageError: As `build.build`.
    """
    if not any(pq.read_metadata(Path(folder) / name).num_rows for name in (METADATA, EXTRA_METADATA)):
        raise SourceError(f"{folder}: no patch was kept, so there is no root to build; see the reports above")
    source, official = open_source(folder)
    if inputs is not None:
        store.put(_INPUTS, json.dumps(dict(inputs)).encode())
    return build(make_plan(source, official, store), executor=executor, workers=workers, progress=progress)
