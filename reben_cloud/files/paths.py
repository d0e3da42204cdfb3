"""What a path argument means: a path of this machine, or a URL; every command and function asks here.

A scheme is what stands before ``://``, or before ``:/`` where it is one of those in use, because `pathlib`
makes ``s3:/bucket`` of ``s3://bucket``. Drive letters and names with a colon are paths.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

SCHEMES = ("file", "s3", "gs", "az", "http", "https", "hf", "memory")
"""Schemes of the stores that `store.open_store` opens."""

WRITABLE = ("file", "s3", "gs", "az")
"""Those of them that can be written to and outlive the process."""

ALIASES = {"gcs": "gs", "abfs": "az", "abfss": "az"}
"""Other names that fsspec has for some of them."""

_ELSEWHERE = frozenset(
    {
        *SCHEMES,
        *ALIASES,
        "lmdb",
        "s3a",
        "s3n",
        "adl",
        "hdfs",
        "ftp",
        "sftp",
        "ssh",
    }
)
"""Schemes that are seen also after `pathlib` has taken one of the two slashes."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)(.*)", re.DOTALL)


def split_scheme(text: str) -> tuple[str | None, str]:
    """The scheme of a URL in lower case and what follows its slashes; None and `text` where it is a path."""
    found = _URL.fullmatch(text)
    if found is None or not (found[2] or found[1].lower() in _ELSEWHERE):
        return None, text
    return found[1].lower(), found[3]


def local_path(
    value: str | os.PathLike[str],
    what: str = "a path",
    *,
    way_out: str = "name a local path, and copy to or from the store with its own tool (such as `aws s3 cp`)",
) -> Path:
    """A path of this machine: as it is, or what a ``file://`` URL means (RFC 8089, percent-decoded).

    Args:
        value: A path, ``file:///x`` or ``file://localhost/x``; ``~`` is the home folder.
        what: The thing that must be local, for the message.
        way_out: What to do about a URL, for the message.

    Raises:
        TypeError: If it is not a path.
        ValueError: If it is empty, or a URL of something that is not this machine's file system.
    """
    text = os.fspath(value)
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string or a path, got {value!r}")
    if not text.strip():
        raise ValueError(f"{what} is an empty string; the current folder is '.'")
    scheme, rest = split_scheme(text)
    if scheme is None:
        return Path(text).expanduser()
    if scheme != "file":
        raise ValueError(f"{what} must be on this machine, got {text!r}: {way_out}")
    # `file:/x` has no host; its one slash is the path's.
    host, _, path = rest.partition("/") if text[5:7] == "//" else ("", "", rest)
    if host.lower() not in ("", "localhost"):
        raise ValueError(
            f"{what} must be on this machine, got {text!r} of the host {host!r}; write file:///PATH"
        )
    return Path("/" + unquote(path))
