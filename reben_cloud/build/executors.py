"""Where jobs run: in this process, in local processes, on a Dask cluster.

Each executor takes what is to be done and an iterable of jobs, and yields the results as they come, in
any order. Few jobs are under way at a time, so that neither a queue nor a scheduler ever holds the whole
dataset's metadata.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context, resource_tracker
from multiprocessing.synchronize import Event
from typing import Any, Protocol, TypeVar

from reben_cloud.errors import RebenError, StorageError, missing_extra

J = TypeVar("J")
R = TypeVar("R")


class Executor(Protocol):
    """Does jobs, yields their results as they come."""

    def __call__(self, do: Callable[[J], R], jobs: Iterable[J], /) -> Iterator[R]:
        """Call `do`, which must be importable where the jobs run, with each job."""
        ...


SCHEDULER_S = 20.0
"""Seconds to wait for a Dask scheduler."""


def local(workers: int) -> Executor:
    """An executor of this machine: in this process for one worker, else so many processes.

    Raises:
        ValueError: If there is not even one.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    return run_here if workers == 1 else partial(run_processes, workers=workers)


def run_here(do: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
    """One after the other, in this process."""
    return map(do, jobs)


def run_processes(do: Callable[[J], R], jobs: Iterable[J], *, workers: int) -> Iterator[R]:
    """In local processes, which end when this one does.

    Raises:
        RebenError: If no process can start, or one is killed, e.g. for lack of memory.
    """
    waiting, running = iter(jobs), set[Future[R]]()
    others, context = active_children(), get_context("spawn")
    has_started = context.Event()
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(), has_started)
    )
    try:
        while True:
            with _interrupts_held():
                for job in itertools.islice(waiting, 2 * workers - len(running)):
                    running.add(pool.submit(do, job))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        if not has_started.is_set():
            raise RebenError(_NO_START) from error
        raise RebenError(
            "a worker process was killed from outside, perhaps for lack of memory; what is done stays done: "
            "run again, perhaps with fewer --workers"
        ) from error
    except KeyboardInterrupt:
        for worker in active_children():
            if worker not in others:
                worker.terminate()  # whatever it was doing is done again by the next run
        raise
    finally:
        # One by one: with `cancel_futures` the pool waits for ever for a job that could not be pickled.
        for future in running:
            future.cancel()
        pool.shutdown()


_NO_START = (
    "no worker process could start: each begins by running the main script again, as far as it is not below "
    '`if __name__ == "__main__":`. Put what starts the work below that line, in a file (a script from stdin cannot be '
    "run again), or take workers=1; what is done stays done"
)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that start meanwhile have Ctrl-C held back: in the middle of an import it would be a traceback."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, whose new processes are interrupted with this one
        yield
        return
    resource_tracker.ensure_running()  # it lets Ctrl-C through when it has started its process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: int, has_started: Event) -> None:
    """End this process soon after its parent, and quietly on Ctrl-C: nothing writes after the build has ended."""
    has_started.set()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def dask(address: str) -> Executor:
    """An executor on a Dask cluster; its workers need this package, the source and the root in reach.

    Args:
        address: Of the scheduler, e.g. ``tcp://scheduler:8786``.
    """
    return partial(run_dask, address=address)


def run_dask(do: Callable[[J], R], jobs: Iterable[J], *, address: str) -> Iterator[R]:
    """On the workers of a Dask cluster.

    A worker that dies costs its jobs of the moment, which another one does again.

    Raises:
        StorageError: If there is no scheduler at the address, or it has no workers.
        MissingExtraError: If distributed is not installed.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise missing_extra("distributed", "dask") from error
    try:
        client: Any = Client(address, timeout=SCHEDULER_S)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError) as error:
        raise StorageError(f"no Dask scheduler at {address} ({error})") from error
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise StorageError(f"the Dask scheduler at {address} has no workers; start some")
        waiting = iter(jobs)

        def submit(count: int) -> list[Any]:
            # Not pure: a rerun must look at its receipts, not at what the scheduler remembers.
            return [client.submit(do, job, pure=False) for job in itertools.islice(waiting, count)]

        running: Any = as_completed(submit(2 * threads))  # type: ignore[no-untyped-call]
        for future in running:
            result = future.result()
            future.release()
            yield result
            running.update(submit(1))
