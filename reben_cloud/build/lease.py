"""Who is building: a small object in the root that its holder rewrites every few seconds.

A lease keeps people from running the same build twice by mistake. What keeps the data whole does
not depend on it: tasks write the same bytes whoever does them, and the manifest is put once.
It is never deleted, because whoever may write to a bucket may not always delete.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

from reben_cloud.errors import ConflictError, StorageError, UnreachableError
from reben_cloud.store import Store

BEAT_S = 15.0
"""Seconds from one sign of life to the next."""

DEAD_S = 90.0
"""Seconds without one after which a holder on another machine counts as dead; clocks must agree on this much."""

_RELEASED = b"{}"
_held: set[object] = (
    set()
)  # ids of the leases that this process holds: a release may fail and the process live on
_SETTLE_S = 0.5  # longer than a small put takes: of two who take over at once, the later one stays


class Lease:
    """Held inside a ``with`` block.

    Raises:
        ConflictError: On entering, if a living process holds it.
    """

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        self._id = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._lost = ""

    def __enter__(self) -> Lease:
        try:
            self._store.put(self._path, self._text(), create=True)
        except FileExistsError:
            holder = _read(self._store, self._path)
            # Our own put, repeated after its answer was lost, finds itself.
            if holder.get("id") != self._id:
                if is_alive(holder):
                    raise ConflictError(describe(self._store.url, holder)) from None
                self._store.put(self._path, self._text())
                time.sleep(_SETTLE_S)
                if (other := _read(self._store, self._path)).get("id") != self._id:
                    raise ConflictError(describe(self._store.url, other)) from None
        _held.add(self._id)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        _held.discard(self._id)
        if self._lost or isinstance(error, UnreachableError):
            return  # a store that nobody reaches is not waited for again: the lease ends when it is not renewed
        try:
            self._store.put(self._path, _RELEASED)
        except StorageError:
            if error is None:
                raise

    def check(self) -> None:
        """Stop a build whose lease somebody else has taken.

        Raises:
            ConflictError: If so.
        """
        if self._lost:
            raise ConflictError(self._lost)

    def _text(self) -> bytes:
        return json.dumps(
            {
                "id": self._id,
                "host": _host(),
                "pid": os.getpid(),
                "started": _started(os.getpid()),
                "time": time.time(),
            }
        ).encode()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                holder = _read(self._store, self._path)
                if holder.get("id") != self._id:
                    self._lost = describe(self._store.url, holder)
                    return
                self._store.put(self._path, self._text())
            except OSError:
                continue  # the tasks meet the same store and report it; a beat may come late


def is_alive(holder: dict[str, object]) -> bool:
    """Whether the process that wrote a lease may still be at work.

    A process of this machine is asked after; one of another machine gets `DEAD_S` from its last beat.
    """
    if not holder:
        return False
    pid = holder.get("pid")
    if holder.get("host") == _host() and isinstance(pid, int) and _CAN_ASK:
        if pid == os.getpid():
            return holder.get("id") in _held
        return _started(pid) == holder.get("started")
    beat = holder.get("time")
    return isinstance(beat, int | float) and time.time() - beat < DEAD_S


_CAN_ASK = os.name != "nt"
"""Whether a process can be asked after. Not on Windows, where signal 0 is a Ctrl-C: silence tells there, too."""


def held(store: Store, folder: str) -> dict[str, dict[str, object]]:
    """Path -> holder of every lease below `folder` that a living process holds."""
    found = {path: _read(store, path) for path, _ in store.list(folder)}
    return {path: holder for path, holder in found.items() if is_alive(holder)}


def _read(store: Store, path: str) -> dict[str, object]:
    try:
        value = json.loads(bytes(store.get(path)))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def describe(url: str, holder: dict[str, object]) -> str:
    """What to tell somebody who wants a lease that `holder` has."""
    return (
        f"{url}: another build is at work (process {holder.get('pid')} on {str(holder.get('host')).split('/')[0]}); "
        "wait for it, or stop it and run again. To share the work, use --worker-index and --workers-total"
    )


def _host() -> str:
    """This machine since it was started: a process id means nothing on another one."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    # Containers share the boot id but not process ids; their host names differ.
    return f"{socket.gethostname()}/{boot.read_text().strip() if boot.exists() else ''}"


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in the kernel's words; None if it is not running."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return _started_without_proc(pid)
    return None if fields[0] in ("Z", "X") else fields[19]


def _started_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
