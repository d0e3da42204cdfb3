"""A store as an fsspec filesystem, for pandas, xarray, zarr and whatever else takes one.

It hands out bytes as they are stored. Their checksums are known to `reben_cloud.Dataset` alone, whose own
methods compare them.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Protocol, TypedDict

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from reben_cloud.store.answers import Listing, Stat


class Objects(Protocol):
    """What a filesystem asks of a `Store`; see its methods."""

    url: str

    @property
    def lists(self) -> bool:
        """Whether it says what it holds."""

    def get(self, path: str) -> memoryview:
        """A whole object."""

    def get_range(self, path: str, start: int, length: int, *, version: str | None = None) -> memoryview:
        """Bytes of an object."""

    def get_end(self, path: str, length: int) -> memoryview:
        """The last bytes of an object."""

    def stat(self, path: str) -> Stat:
        """Size and version of an object."""

    def list_folder(self, prefix: str) -> Listing:
        """What is directly in a folder."""


class Entry(TypedDict, total=False):
    """A file or folder, in fsspec's form."""

    name: str
    """Its path below the store."""
    size: int
    """Bytes; 0 for a folder."""
    type: str
    """``file`` or ``directory``."""
    version: str
    """The version of a file, as in `Store.stat`; only `info` asks for it."""


class StoreFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec publishes no types
    """The objects of a store, read-only, with the budget, retries and messages of `Store`. Picklable.

    Paths are those below the store (``patches.parquet``), or whole URLs that begin with the store's own. An open
    file is read at the version that it had when it was opened.

    Args:
        store: Where the objects lie.

    Raises:
        ChangedError: On reading a file that was written again after it was opened.
        FileNotFoundError: If there is no such object.
        StorageError: If the store refuses or does not answer, as in `Store.get`.
        OSError: On any attempt to write (``EROFS``).
    """

    protocol = "reben"
    # fsspec would find an instance by the words of its arguments, which do not tell two credentials apart.
    cachable = False

    def __init__(self, store: Objects) -> None:
        super().__init__(store)
        self.store = store
        """Where the objects lie."""

    def _strip_protocol(self, path: str | Sequence[str]) -> str | list[str]:
        """The path below the store; a list gives a list, as everywhere in fsspec."""
        if not isinstance(path, str):
            return [self._inside(one) for one in path]
        return self._inside(path)

    def _inside(self, path: str) -> str:
        return path.removeprefix(f"{self.protocol}://").removeprefix(self.store.url).strip("/")

    @classmethod
    def _parent(cls, path: str) -> str:
        return path.rstrip("/").rpartition("/")[0]

    def info(self, path: str, **kwargs: object) -> Entry:
        """Name, size, type and version of a file, or name and type of a folder.

        Raises:
            FileNotFoundError: If there is neither.
        """
        path = self._inside(path)
        if path:
            try:
                size, version = self.store.stat(path)
            except FileNotFoundError:
                if not self.store.lists or not any(self.store.list_folder(path)):
                    raise
            else:
                return {"name": path, "size": size, "type": "file", "version": version}
        return {"name": path, "size": 0, "type": "directory"}

    def ls(self, path: str, detail: bool = True, **kwargs: object) -> list[Entry] | list[str]:
        """Files and folders directly in a folder; of a file, the file itself.

        Args:
            path: The folder.
            detail: Give entries with sizes and types, not names alone.
            **kwargs: Those of other filesystems, without effect.

        Raises:
            FileNotFoundError: If there is no such file or folder.
        """
        path = self._inside(path)
        files, folders = self.store.list_folder(path)
        found: list[Entry] = [{"name": name, "size": 0, "type": "directory"} for name in folders]
        found += [{"name": name, "size": size, "type": "file"} for name, size in files]
        if not found and path:
            found = [self.info(path)]
        return found if detail else [entry["name"] for entry in found]

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: object
    ) -> bytes:
        """Bytes of a file.

        Args:
            path: The file.
            start: The first byte, from the end if negative; 0 by default.
            end: The byte after the last one, from the end if negative; the end of the file by default.
            **kwargs: Those of other filesystems, without effect.
        """
        path = self._inside(path)
        if start is not None and start < 0 and end is None:
            return bytes(self.store.get_end(path, -start))
        if not start and end is None:
            return bytes(self.store.get(path))
        if end is None or end < 0 or (start or 0) < 0:
            start, end, _ = slice(start, end).indices(self.store.stat(path).size)
        start = start or 0
        return bytes(self.store.get_range(path, start, max(0, end - start)))

    def ukey(self, path: str) -> str:
        """The version of a file, by which fsspec's caches see that it has changed."""
        return self.store.stat(self._inside(path)).version

    def _open(self, path: str, mode: str = "rb", **kwargs: object) -> StoreFile:
        if mode != "rb":
            self._refuse(path)
        return StoreFile(self, self._inside(path), **kwargs)

    def _refuse(self, path: str, *args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "this view of a root is read-only; write with `Store.put`", path)

    # All that fsspec derives from these is refused with them.
    mkdir = makedirs = rmdir = rm_file = _rm = pipe_file = put_file = cp_file = mv = touch = _refuse


class StoreFile(AbstractBufferedFile):  # type: ignore[misc]
    """An object that is open for reading; its options are those of fsspec (``block_size``, ``cache_type``)."""

    def __init__(self, fs: StoreFileSystem, path: str, **kwargs: object) -> None:
        self._stat: Stat = fs.store.stat(path)
        super().__init__(fs, path, "rb", **{**kwargs, "size": self._stat.size})

    def _fetch_range(self, start: int, end: int) -> bytes:
        store: Objects = self.fs.store
        return bytes(store.get_range(self.path, start, end - start, version=self._stat.version))
