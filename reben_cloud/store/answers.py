"""What a store's client answers: the form that `Store` reads objects in, whoever sends them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

Span = tuple[int, int] | int | None
"""Bytes that are asked for: the first and the one after the last; the last so many; or all."""


class Stat(NamedTuple):
    """An object as it is now."""

    size: int
    """Bytes."""
    version: str
    """Another text when the object was written again: its ETag, or else its size and time."""


class Listing(NamedTuple):
    """What is directly in a folder, sorted by path."""

    files: list[tuple[str, int]]
    """(path, bytes) of its objects."""
    folders: list[str]
    """Paths of the folders in it."""


class Answer(Protocol):
    """Bytes of an object, on their way."""

    first: int
    """First byte that comes."""
    stop: int
    """The byte after the last that comes."""

    @property
    def version(self) -> str:
        """The version of the object that they are of."""

    def fill(self, buffer: memoryview) -> Iterator[int]:
        """Put the bytes into memory in order, and say each time how many came; ends early when the sender does.

        Raises:
            ChangedError: If they are of another version than was asked for.
            OSError: If they stop to come, come for longer than a request may take, or are more than fit.
        """

    def close(self) -> None:
        """Give up what is left of it."""


class Client(Protocol):
    """Who answers for the objects of one store, one attempt at a time."""

    def get(self, path: str, span: Span, *, version: str | None) -> Answer:
        """Ask for bytes of an object.

        Args:
            path: The object.
            span: Which bytes.
            version: What the object must be, if it matters.

        Raises:
            ChangedError: If it is another version.
            OSError: A failure that `refusals.meaning` can tell; obstore's own errors too.
        """

    def stat(self, path: str) -> Stat:
        """Size and version of an object. Raises as `get`."""


def put(piece: memoryview | bytes, buffer: memoryview, at: int) -> int:
    """Copy a piece of an answer into memory from byte `at` on; the byte after its last.

    Raises:
        OSError: If it does not fit.
    """
    stop = at + len(piece)
    if stop > len(buffer):
        raise OSError(f"more bytes came than the {len(buffer):,} announced")
    buffer[at:stop] = piece
    return stop


def is_strong(version: str | None) -> bool:
    """Whether a version is an ETag that a server can be asked to compare (RFC 9110, section 8.8.3)."""
    return version is not None and version.startswith('"')


def dated_version(size: int, time: str | None) -> str:
    """The version of an object that has no ETag."""
    return f"{size:,} bytes" + (f" of {time}" if time else "")
