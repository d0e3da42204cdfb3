"""Build a root: a pure plan of which task writes which objects, an executor, and the commit.

A task writes whole objects, is idempotent, and leaves a receipt with their checksums below
``_build/``; a second run skips what a receipt vouches for. The manifest is put last, create-only:
a killed build leaves no dataset, and run again it ends in the same bytes.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from reben_cloud.build import lease
from reben_cloud.build.account import (
    Before,
    account,
    not_taken,
    num_done,
    published,
    rows_without_patches,
    rows_without_patches_text,
)
from reben_cloud.build.executors import Executor, dask, local
from reben_cloud.build.jobs import Estimate, Task, UnpackTask
from reben_cloud.build.plan import FORMAT_VERSION, JOURNAL, MANIFEST, BuildPlan, is_root_of, make_plan
from reben_cloud.build.publish import publish
from reben_cloud.build.receipts import Receipt, read_receipt
from reben_cloud.build.request import open_plan
from reben_cloud.build.tasks import START_OVER, run_job
from reben_cloud.errors import ConflictError
from reben_cloud.root.commit import begin
from reben_cloud.root.digest import is_intact, sealed
from reben_cloud.root.documents import read_manifest
from reben_cloud.root.manifest import Manifest
from reben_cloud.root.objects import WrittenObject
from reben_cloud.store import Store

__all__ = [
    "FORMAT_VERSION",
    "JOURNAL",
    "MANIFEST",
    "Before",
    "BuildPlan",
    "Estimate",
    "Executor",
    "Progress",
    "Receipt",
    "WrittenObject",
    "account",
    "build",
    "build_share",
    "dask",
    "local",
    "make_plan",
    "not_taken",
    "num_done",
    "open_plan",
    "published",
    "rows_without_patches",
    "rows_without_patches_text",
    "silent",
]

logger = logging.getLogger(__name__)

LEASES = f"{JOURNAL}/leases"
"""Folder of the leases of those at work."""

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Wraps what comes one by one, e.g. with a progress bar: the things, their number, what they are."""


def silent(items: Iterable[Any], _total: int, _what: str) -> Iterable[Any]:
    """No progress at all."""
    return items


def build(
    plan: BuildPlan, *, executor: Executor | None = None, workers: int = 1, progress: Progress = silent
) -> Manifest:
    """Write the root, or finish writing it; a root that this plan has published is left as it is.

    Args:
        plan: From `make_plan`.
        executor: Where the tasks run, from `local` or `dask`.
        workers: Local processes, when no executor is given; 1 works in this process.
        progress: Wraps the stream of finished tasks.

    Returns:
        The manifest.

    Raises:
        ConflictError: If the root is published or being built, by somebody or from something else.
        SourceError: If a patch contradicts its metadata.
        StorageError: If the store or the scratch disk fails after the retries.
    """
    published = claim(plan)
    if published is not None:
        return published
    run = executor or local(workers)
    with lease.Lease(plan.store, f"{LEASES}/build.json") as held:
        _refuse_others(plan, own=f"{LEASES}/build.json")
        _unpack(plan, plan.unpack_tasks(), run, progress)
        receipts = {}
        for receipt in progress(run(run_job, plan.jobs(plan.tasks)), len(plan.tasks), "build"):
            receipts[receipt.task] = receipt
            held.check()
        manifest = publish(plan, receipts)
    if plan.spool is not None:
        plan.spool.delete()
    return manifest


def build_share(
    plan: BuildPlan,
    *,
    worker_index: int,
    workers_total: int,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> Manifest | None:
    """Do one worker's share of a build that several machines or array jobs do together.

    Whoever finds all tasks done publishes. A share can be done again, by anybody.

    Args:
        plan: The same for all of them.
        worker_index: Which share, in [0, workers_total).
        workers_total: Number of shares.
        executor: Where the tasks run; in this process by default.
        progress: Wraps the stream of finished tasks.

    Returns:
        The manifest once the root is published, None while other shares are not done.

    Raises:
        ValueError: If the index is out of range.
        ConflictError, SourceError, StorageError: As `build`.
    """
    if not 0 <= worker_index < workers_total:
        raise ValueError(f"worker_index must be in [0, {workers_total}), got {worker_index}")
    published = claim(plan)
    if published is not None:
        return published
    run = executor or local(1)
    own = f"{LEASES}/share-{worker_index:05d}-of-{workers_total:05d}.json"
    with lease.Lease(plan.store, own) as held:
        _refuse_others(plan, own=own)
        _unpack(plan, plan.unpack_tasks()[worker_index::workers_total], run, progress)
        _await_unpacked(plan)
        # Dealt out one by one: every share has a like number of Zarr and of shard tasks.
        mine = plan.tasks[worker_index::workers_total]
        for _ in progress(run(run_job, plan.jobs(mine)), len(mine), "build"):
            held.check()
        receipts = _receipts(plan)
        if receipts is None:
            return None
        manifest = publish(plan, receipts)
    if plan.spool is not None:
        plan.spool.delete()
    return manifest


def claim(plan: BuildPlan) -> Manifest | None:
    """Make the root this plan's, or find that it is; the manifest if it is finished already.

    Raises:
        ConflictError: If something else is published or being built there.
    """
    manifest = read_manifest(plan.store)
    if manifest is not None:
        if is_root_of(plan.fingerprint, manifest, plan.store):
            way_out = "A root never changes: build into a new one, or build this with what it was made from"
            _refuse_changed_source(plan, way_out)
            return manifest
        raise ConflictError(
            f"{plan.store.url} is published already, with other patches or options; a root never changes, "
            "build into a new one"
        )
    there = [path for path, _ in plan.store.list()]
    if there and not any(path.startswith(f"{JOURNAL}/") for path in there):
        raise ConflictError(
            f"{plan.store.url} is not empty: it holds {min(there)}; a root has a folder or prefix of its own"
        )
    if not begin(plan.store, PLAN, json.dumps(sealed(plan.beginning), indent=2).encode()):
        _refuse_another_plan(plan)
        _refuse_changed_source(plan, START_OVER.format(url=plan.store.url))
    return None


PLAN = f"{JOURNAL}/plan.json"
"""What the build began with (`BuildPlan.beginning`)."""


def _beginning(store: Store) -> dict[str, Any] | None:
    """What the build in a root began with; None if that is not said, as by earlier versions, or is damaged."""
    try:
        found = json.loads(bytes(store.get(PLAN)))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and is_intact(found) else None


def _refuse_another_plan(plan: BuildPlan) -> None:
    url, theirs = plan.store.url, _beginning(plan.store)
    if theirs is None:
        raise ConflictError(
            f"{url} holds an unfinished build, and its {PLAN} is damaged, or an earlier version of reben_cloud began "
            f"it: what is done there cannot be told to be this. Start over: remove all that is in {url}, and "
            "build again"
        )
    if theirs["plan"] != plan.fingerprint:
        ours = plan.beginning
        keys = [key for key in ("patches", "modalities", "order") if theirs.get(key) != ours[key]]
        what = (
            "; ".join(f"{key}: {theirs.get(key)}, this has {ours[key]}" for key in keys) or "other metadata"
        )
        raise ConflictError(
            f"{url} holds an unfinished build of something else (plan {theirs['plan']}, this is {plan.fingerprint}; "
            f"{what}); finish that one with its own source and options, or take an empty root"
        )


def _refuse_changed_source(plan: BuildPlan, way_out: str) -> None:
    """Let nothing count as done that was made from another state of the source."""
    theirs = _beginning(plan.store)
    if theirs is None or theirs["source"] == plan.beginning["source"]:
        return
    was, now = (
        {"kind of source": s["kind"], **s["files"]} for s in (theirs["source"], plan.beginning["source"])
    )
    differ = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    first = differ[0]
    raise ConflictError(
        f"{plan.store.url} was begun from another state of the source: {first} was {was.get(first, 'not there')}, is "
        f"{now.get(first, 'not there')} ({len(differ)} such differences). {way_out}"
    )


def _refuse_others(plan: BuildPlan, *, own: str) -> None:
    """Let shares of one division work side by side, and nobody else."""
    division = own.rpartition("-of-")[2] if "-of-" in own else own
    for path, holder in lease.held(plan.store, LEASES).items():
        if path != own and not (path.endswith(division) and "-of-" in own):
            raise ConflictError(lease.describe(plan.store.url, holder))


def _receipts(plan: BuildPlan) -> dict[str, Receipt] | None:
    """The receipts of all tasks, None while one is missing."""
    found = {}
    for task in plan.tasks:
        receipt = read_receipt(plan.store, f"{JOURNAL}/{plan.fingerprint}/{task.name}.json")
        if receipt is None:
            return None
        found[task.name] = receipt
    return found


# -- archives ----------------------------------------------------------------------------------------


def _unpack(plan: BuildPlan, tasks: Sequence[Task], run: Executor, progress: Progress) -> None:
    """Read archives into the scratch folder, and watch it fill: there are three tasks and 1.6 million payloads."""
    if plan.spool is not None:
        plan.spool.prepare()
    if not tasks:
        return
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in run(run_job, plan.jobs(tasks)):
                pass
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            failures.append(error)

    thread = threading.Thread(target=work, name="unpack", daemon=True)
    thread.start()
    modalities = [task.modality for task in tasks if hasattr(task, "modality")]
    for _ in progress(_arrivals(plan, modalities, thread), plan.table.num_rows * len(modalities), "unpack"):
        pass
    thread.join()
    if failures:
        raise failures[0]


def _arrivals(plan: BuildPlan, modalities: Sequence[str], thread: threading.Thread) -> Iterator[int]:
    """A number for each payload that has come to the scratch folder, until `thread` ends."""
    assert plan.spool is not None
    seen = 0
    while True:
        ended = not thread.is_alive()
        present = sum(int(plan.spool.held(m).sum()) for m in modalities)
        yield from range(seen, present)
        seen = present
        if ended:
            return
        thread.join(0.5)


def _await_unpacked(plan: BuildPlan) -> None:
    """Wait for the archives that other shares unpack."""
    told = 0.0
    while plan.spool is not None and plan.unpack_tasks():
        archives = [task.modality for task in plan.unpack_tasks() if isinstance(task, UnpackTask)]
        lacking = sum(int((~plan.spool.held(m)).sum()) for m in archives)
        if not lacking:
            return
        if time.monotonic() - told > 60:
            logger.warning(
                "waiting for other shares to unpack %s payloads into %s", f"{lacking:,}", plan.spool.folder
            )
            told = time.monotonic()
        time.sleep(1)
