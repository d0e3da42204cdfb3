"""`Store`: the objects below one URL, read and written within a budget, with errors that name them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
import obstore
from obstore import exceptions as obs_errors

from reben_cloud.errors import StorageError
from reben_cloud.store import address
from reben_cloud.store.address import normalise_url
from reben_cloud.store.answers import Client, Listing, Span, Stat
from reben_cloud.store.budget import BUDGET, Budget, Tries
from reben_cloud.store.clients import (
    ObstoreClient,
    check_process,
    connect_obstore,
    connect_web,
    max_connections,
)
from reben_cloud.store.refusals import SilentError, may_pass, meaning, wait_s
from reben_cloud.store.secrecy import public_url, scrub

if TYPE_CHECKING:
    from reben_cloud.store.filesystem import StoreFileSystem
    from reben_cloud.store.hub import Hub
    from reben_cloud.store.web import WebClient

T = TypeVar("T")

_PART_BYTES = 5 * 1024 * 1024
"""Size of the parts in which a large file is sent; S3 takes none smaller, and 10,000 of them: 50 GB."""

_PARTS_AT_ONCE = 4


def open_store(url: str | os.PathLike[str], storage_options: Mapping[str, object] | None = None) -> Store:
    """A store for everything below `url`; nothing is contacted yet.

    Args:
        url: A path, or a ``file://``, ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix``
            (or ``abfs://``), ``http(s)://`` (read-only), ``hf://datasets/OWNER/NAME[@REVISION]/PATH`` (read-only)
            or ``memory://name`` URL.
        storage_options: Options in fsspec's words or in obstore's; the same dictionary serves pandas, xarray and
            `fsspec.open`. S3: ``key``, ``secret``, ``token``, ``anon``, ``profile``, ``endpoint_url``,
            ``client_kwargs``, ``config_kwargs`` with an ``addressing_style``; or ``access_key_id``,
            ``secret_access_key``, ``region``, ``endpoint``, ``skip_signature``, ... What is not given comes from
            the usual ``AWS_*`` variables or profile. ``gs://`` and ``az://``: ``token``, ``anon``,
            ``account_name``, ``account_key``, ...; or ``google_service_account``,
            ``azure_storage_account_name``, ...; else from their ``GOOGLE_*`` and ``AZURE_*`` variables.
            ``hf://``: ``token`` and ``endpoint``, else ``HF_TOKEN`` (or that of ``hf auth login``) and
            ``HF_ENDPOINT``. Both kinds of web servers: ``max_connections``, the requests that are on their way
            at once, 32.

    Raises:
        ValueError: If the scheme is unknown or an option is not understood.
    """
    return Store(normalise_url(url), dict(storage_options or {}))


class Store:
    """Objects below one URL. Paths are relative, with ``/``; made by `open_store`.

    Safe to use from many threads, and picklable: the client is made on first use in each process.
    Every call has one `Budget`; nothing above it needs to try again because a store failed.
    """

    def __init__(
        self, url: str, storage_options: Mapping[str, object], *, budget: Budget | None = None
    ) -> None:
        self._address = url
        self.url = public_url(url)
        """Where the store is, without a trailing slash, credentials or query."""
        self.storage_options = dict(storage_options)
        """The options it was opened with; may hold secrets, so never printed."""
        self.budget = budget or BUDGET
        """What a call may cost."""
        self._client: Any = None
        self._writers: dict[tuple[Budget, int], Any] = {}
        self._web: tuple[WebClient, Hub | None] | None = None
        self._askers: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __getstate__(self) -> dict[str, object]:
        return {"url": self._address, "storage_options": self.storage_options, "budget": self.budget}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"], state["storage_options"])  # type: ignore[misc]
        self.budget = state["budget"]

    # -- reading ---------------------------------------------------------------------------------

    def get(self, path: str, *, version: str | None = None) -> memoryview:
        """The whole object, read-only.

        Args:
            path: The object.
            version: What `stat` said of it, if it must still be so.

        Raises:
            FileNotFoundError: If there is no such object.
            ChangedError: If it is another version, or becomes one while it is read.
            UnreachableError: If the store does not answer within the budget.
            StorageError: If the store refuses, or fails after the attempts of the budget.
        """
        return self._read(path, None, version=version)

    def get_into(self, path: str, buffer: memoryview, *, tries: Tries | None = None) -> int:
        """Fill a buffer with the object that should fit it: no memory of its own, so faster than `get`.

        Args:
            path: The object.
            buffer: Bytes that may be written.
            tries: Attempts and time that count already.

        Returns:
            Size of the object as it came, bytes; when it is not that of the buffer, what is in the buffer
            is of no use. Raises as `get`.
        """
        size = buffer.nbytes

        def place(nbytes: int) -> memoryview | None:
            nonlocal size
            size = nbytes
            return buffer if nbytes == buffer.nbytes else None

        self._fill(path, None, place, tries=tries)
        return size

    def get_range(self, path: str, start: int, length: int, *, version: str | None = None) -> memoryview:
        """`length` bytes from byte `start`, fewer where the object ends; read-only. Raises as `get`."""
        return self._read(path, (start, start + length), version=version)

    def get_end(self, path: str, length: int, *, version: str | None = None) -> memoryview:
        """The last `length` bytes, read-only. Raises as `get`."""
        return self._read(path, length, version=version)

    def get_ranges(
        self, path: str, starts: Sequence[int], lengths: Sequence[int], *, version: str | None = None
    ) -> list[memoryview]:
        """Several ranges of one object, one request each, concurrently. Raises as `get`."""
        spans = [(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        # obstore refuses a range of no bytes.
        if address.is_web(self.url) or version is not None or not all(lengths):
            return list(self._threads.map(lambda span: self._read(path, span, version=version), spans))
        tries = Tries(self.budget)
        try:
            buffers = obstore.get_ranges(self.client, path, starts=starts, lengths=lengths, coalesce=0)
        except (obs_errors.BaseError, OSError) as error:
            self._again(tries, error, "read", path)
        else:
            return [memoryview(buffer) for buffer in buffers]
        # One of them failed, and which is not said: one after the other, each as far as it goes.
        return [self._read(path, span, tries=tries) for span in spans]

    def get_ranges_into(
        self, path: str, starts: Sequence[int], buffers: Sequence[memoryview], *, version: str | None = None
    ) -> list[int]:
        """`get_ranges` into memory of the caller: each buffer is filled from its start in the object on.

        Args:
            path: The object.
            starts: First byte for each buffer.
            buffers: Bytes that may be written.
            version: As in `get`.

        Returns:
            How many bytes came into each, fewer than fit where the object ends. Raises as `get`.
        """

        def fill(start: int, buffer: memoryview) -> int:
            span = start, start + buffer.nbytes
            if not buffer.nbytes:
                return 0
            if not self._is_remote:
                data = self._read(path, span, version=version)
                buffer[: data.nbytes] = data
                return data.nbytes
            filled = self._fill(path, span, lambda nbytes: buffer[:nbytes], version)
            assert filled is not None
            return filled.nbytes

        return list(self._threads.map(fill, starts, buffers))

    def head(self, path: str) -> int:
        """Size of the object in bytes. Raises as `get`."""
        return self.stat(path).size

    def stat(self, path: str) -> Stat:
        """Size and version of the object as it is now; reads can be told to want that version.

        The version is its ETag (on the Hugging Face hub, that of its content), and without one its size and
        time. Raises as `get`.
        """
        return self._try("read", path, lambda: self._answering.stat(path))

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        try:
            self.head(path)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(path, bytes) of every object below the folder `prefix`, unsorted; none is no error.

        A web server is asked as WebDAV has it, which few answer.
        """
        if self._hub is not None:
            hub = self._hub
            yield from self._try("list", prefix, lambda: list(hub.list(prefix)))
            return
        if self.is_local and not os.path.isdir(self.local_path() or ""):
            return
        tries = Tries(self.budget)
        last: str | None = None
        while True:
            try:
                for page in obstore.list(self.client, prefix or None, offset=last):
                    tries.progress()
                    for meta in page:
                        yield meta["path"], meta["size"]
                    if self._is_remote:  # which lists in order of paths
                        last = page[-1]["path"]
                return
            except (obs_errors.BaseError, OSError) as error:
                self._again(tries, error, "list", prefix)

    def list_folder(self, prefix: str = "") -> Listing:
        """What is right in the folder `prefix`, not all that lies below it.

        None is no error. A web server is asked as WebDAV has it, which few answer. Raises StorageError as `get`.
        """
        if self._hub is not None:
            hub = self._hub
            return self._try("list", prefix, lambda: hub.list_folder(prefix))
        if self.is_local and not os.path.isdir(self.local_path(prefix) or ""):
            return Listing(files=[], folders=[])
        found = self._try("list", prefix, lambda: obstore.list_with_delimiter(self.client, prefix or None))
        files = sorted((meta["path"], meta["size"]) for meta in found["objects"])
        return Listing(files=files, folders=sorted(path.rstrip("/") for path in found["common_prefixes"]))

    # -- writing ---------------------------------------------------------------------------------

    def put(self, path: str, data: bytes | memoryview, *, create: bool = False) -> None:
        """Write an object as a whole, atomically.

        A remote store has the longer for it the larger it is; see `Budget.write_bytes_per_s`.

        Args:
            path: Where to.
            data: Its bytes.
            create: Refuse to overwrite (``If-None-Match: *`` on S3). One single request, because
                some servers ignore the condition on multipart uploads.

        Raises:
            FileExistsError: If `create` and the object exists.
            StorageError: As `get`.
        """
        mode: Any = "create" if create else "overwrite"
        if (folder := self.local_path()) is not None:
            _make_folder(folder)
        budget = self.budget.for_write(memoryview(data).nbytes)
        client = self._writing(budget)
        self._try(
            "write",
            path,
            lambda: obstore.put(client(), path, data, mode=mode, use_multipart=False),
            budget,
        )

    def put_file(self, path: str, file: Path) -> None:
        """Write an object as a whole, atomically, from a local file that need not fit into memory.

        A remote store gets it in parts, a few at a time; one that fails is sent again, not all of them. The times of
        the budget are those of writing these few.

        Args:
            path: Where to; what is there is replaced.
            file: The file.

        Raises:
            StorageError: As `get`.
        """
        if (folder := self.local_path()) is not None:
            _make_folder(folder)
        budget = self.budget.for_write(min(file.stat().st_size, _PARTS_AT_ONCE * _PART_BYTES))
        client = self._writing(budget, attempts=budget.attempts)
        self._try(
            "write",
            path,
            lambda: obstore.put(client(), path, file, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE),
            budget,
        )

    def delete(self, path: str) -> None:
        """Delete an object; quiet when there is none. Raises StorageError as `get`."""
        with contextlib.suppress(FileNotFoundError):
            self._try("delete", path, lambda: obstore.delete(self.client, path))

    # -- attempts --------------------------------------------------------------------------------

    def _try(self, verb: str, path: str, call: Callable[[], T], budget: Budget | None = None) -> T:
        tries = Tries(budget or self.budget)
        while True:
            try:
                return call()
            except (obs_errors.BaseError, OSError) as error:
                self._again(tries, error, verb, path)

    def _read(
        self, path: str, span: Span, *, version: str | None = None, tries: Tries | None = None
    ) -> memoryview:
        """Bytes of an object, read-only, in memory of their own."""
        if isinstance(span, tuple) and span[0] == span[1]:
            return memoryview(b"")  # which no range can say
        if not self._is_remote:  # a stream of a file comes in pieces of 8 kB
            here = ObstoreClient(self.client, self.local_path())
            return self._try("read", path, lambda: here.read(path, span, version=version))
        found = self._fill(path, span, lambda nbytes: np.empty(nbytes, np.uint8).data, version, tries)
        assert found is not None
        return found.toreadonly()

    def _fill(
        self,
        path: str,
        span: Span,
        place: Callable[[int], memoryview | None],
        version: str | None = None,
        tries: Tries | None = None,
    ) -> memoryview | None:
        """Put bytes of an object somewhere; an answer that breaks off is gone on with where it ended.

        Args:
            path: The object.
            span: Which bytes.
            place: Called with the number of bytes that come: where to put them, None to do without.
            version: What the object must be.
            tries: Attempts that count already.

        Returns:
            What `place` gave, filled.
        """
        tries = tries or Tries(self.budget)
        buffer: memoryview | None = None
        held: str | None = None
        done = 0
        while True:
            try:
                # Bytes of two versions are never put together.
                wanted = held if done else version
                with closing(self._answering.get(path, span, version=wanted)) as answer:
                    if done == 0:
                        first, stop = answer.first, answer.stop
                        buffer = place(stop - first)
                        if buffer is None:
                            return None
                        held = answer.version
                    assert buffer is not None
                    for came in answer.fill(buffer[done:]):
                        done += came
                        tries.progress(came)
                    if done < stop - first:
                        raise SilentError(f"{done:,} bytes came of the {stop - first:,} announced")
                    return buffer
            except (obs_errors.BaseError, OSError) as error:
                self._again(tries, error, "read", path)
            if done:
                if done == stop - first:  # all came before what failed
                    return buffer
                span = first + done, stop

    def _again(self, tries: Tries, error: Exception, verb: str, path: str) -> None:
        """Wait before the next attempt, or raise: what `error` means, when another is no use or not allowed."""
        scrub(error)
        name = f"{self.url}/{path}" if path else self.url
        failure = meaning(error, verb=verb, name=name, ways_out=address.ways_out(self.url))
        if not (self._is_remote and may_pass(error)):
            raise failure from error
        if not tries.wait(wait_s(error)):
            raise type(failure)(f"{failure}; {tries}") from error

    # -- beside ----------------------------------------------------------------------------------

    @property
    def is_local(self) -> bool:
        """Whether objects are plain files, so that `local_path` is not None."""
        return self.url.startswith("file://")

    @property
    def lists(self) -> bool:
        """Whether the store can be expected to say what it holds; of web servers only few can."""
        return not address.is_http(self.url)

    @property
    def _is_remote(self) -> bool:
        return not self.url.startswith(("file://", "memory://"))

    def local_path(self, path: str = "") -> Path | None:
        """The file behind an object, or None when the store is not a local folder."""
        if not self.is_local:
            return None
        root = Path(unquote(urlsplit(self.url).path))
        return root / path if path else root

    @property
    def s3_location(self) -> dict[str, str] | None:
        """``bucket``, ``region`` and, unless it is AWS, ``endpoint`` of an S3 store: nothing secret; else None."""
        return address.s3_location(self.url, self.storage_options)

    def child(self, prefix: str) -> Store:
        """The store of everything below the folder `prefix`; its `url` is also that of an object of this name."""
        return Store(address.child(self._address, prefix), self.storage_options, budget=self.budget)

    def parent(self) -> tuple[Store, str]:
        """The store above this one, and the name of this one in it."""
        above, name = address.parent(self._address)
        return Store(above, self.storage_options, budget=self.budget), name

    def filesystem(self) -> StoreFileSystem:
        """The same objects as an fsspec filesystem, read-only, for libraries that take one."""
        from reben_cloud.store.filesystem import StoreFileSystem  # fsspec is not needed to read a root

        return StoreFileSystem(self)

    def pinned(self) -> Store:
        """The same store at the commit that its revision names now, where it has revisions (``hf://``); else itself.

        Raises:
            UnreachableError: If the hub does not answer within the budget.
            StorageError: If the hub refuses, or has no such data set or revision.
        """
        if self._hub is None:
            return self
        pinned = self._try("open", "", self._hub.pinned)
        return Store(str(pinned), self.storage_options, budget=self.budget)

    @property
    def client(self) -> Any:
        """The obstore client of this process, for libraries that take one; it makes one attempt at a time.

        Raises:
            ForkError: In a child that was forked after the parent used a client.
            StorageError: If obstore knows no such store (``hf://``).
        """
        check_process(self.url)
        if self._client is None:
            self._client = connect_obstore(self._address, self.storage_options, self.budget)
        return self._client

    def _writing(self, budget: Budget, *, attempts: int = 1) -> Callable[[], Any]:
        """Gives the client for a write of this budget; a client has its times for good, so others have their own.

        Args:
            budget: What a request may take.
            attempts: How often the client makes a request before it reports that it failed.
        """

        def client() -> Any:
            if (budget == self.budget and attempts == 1) or not self._is_remote:
                return self.client
            check_process(self.url)
            with self._lock:
                if (budget, attempts) not in self._writers:
                    self._writers[budget, attempts] = connect_obstore(
                        self._address, self.storage_options, budget, attempts=attempts
                    )
                return self._writers[budget, attempts]

        return client

    @property
    def _answering(self) -> Client:
        """Who is asked for objects. Raises as `client`."""
        if not address.is_web(self.url):
            return ObstoreClient(self.client, self.local_path())
        return self._on_the_web()[0]

    @property
    def _hub(self) -> Hub | None:
        return self._on_the_web()[1] if self.url.startswith("hf://") else None

    def _on_the_web(self) -> tuple[WebClient, Hub | None]:
        check_process(self.url)
        with self._lock:
            if self._web is None:
                self._web = connect_web(self._address, self.storage_options, self.budget)
            return self._web

    @property
    def _threads(self) -> ThreadPoolExecutor:
        """Those that ask for several ranges at once."""
        with self._lock:
            if self._askers is None:
                self._askers = ThreadPoolExecutor(max_connections(self.storage_options))
            return self._askers


def _make_folder(folder: Path) -> None:
    """Made by the first write, not by opening: a typo in a read must leave no folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}") from error
