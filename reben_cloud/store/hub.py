"""``hf://datasets/OWNER/NAME[@REVISION]/PATH``: where the files of a data set on the Hugging Face hub are.

The hub's own library resolves the revision, finds the token and spells URLs; the bytes come through `web`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

from reben_cloud.errors import StorageError, missing_extra
from reben_cloud.store.answers import Listing
from reben_cloud.store.refusals import RefusedError, SilentError
from reben_cloud.store.secrecy import mask, scrub
from reben_cloud.store.web import Location

try:
    import huggingface_hub
    from huggingface_hub import errors as hub_errors
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("huggingface_hub", "hub") from error

_ADDRESS = re.compile(
    r"hf://datasets/(?P<repo>[^/@\s]+/[^/@\s]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/\s]+|[^/\s]+))?(?P<prefix>/.*)?"
)
_FAILURES: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    *(base for base in hub_errors.HfHubHTTPError.__bases__ if issubclass(base, Exception)),
)
"""What a question to the hub may raise: the errors of whichever HTTP library its own library is built on."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_OPTIONS = frozenset({"token", "endpoint", "max_connections"})


@dataclass(frozen=True, kw_only=True, slots=True)
class HubAddress:
    """What an ``hf://`` URL names."""

    repo: str
    """``OWNER/NAME``."""
    revision: str
    """A branch, a tag, a commit, or a reference such as ``refs/pr/1``."""
    prefix: str
    """Folder in the repository, without slashes around it."""

    @classmethod
    def parse(cls, url: str) -> HubAddress:
        """From a URL.

        Raises:
            ValueError: If it is not the URL of a data set.
        """
        found = _ADDRESS.fullmatch(url)
        if found is None:
            raise ValueError(f"cannot open {mask(url)!r}: write hf://datasets/OWNER/NAME[@REVISION]/PATH")
        return cls(
            repo=found["repo"],
            revision=unquote(found["revision"] or "main"),
            prefix=(found["prefix"] or "").strip("/"),
        )

    def __str__(self) -> str:
        """The URL, with its revision."""
        prefix = f"/{self.prefix}" if self.prefix else ""
        return f"hf://datasets/{self.repo}@{quote(self.revision, safe='')}{prefix}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which always names the same files."""
        return _COMMIT.fullmatch(self.revision) is not None


class Hub:
    """The files below one ``hf://`` URL, all of the commit that the revision named when it was first asked.

    Args:
        url: The URL.
        storage_options: ``token`` (False for none; by default ``HF_TOKEN`` or that of ``hf auth login``),
            ``endpoint`` (by default ``HF_ENDPOINT`` or the public hub).
        timeout_s: What a question to the hub may take, seconds.

    Raises:
        ValueError: If the URL or an option is not understood.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any], *, timeout_s: float) -> None:
        # A command has one set of options for all its stores; the address of an S3 server is none of a hub's.
        if unknown := sorted(storage_options.keys() - _OPTIONS - {"endpoint_url"}):
            raise ValueError(
                f"unknown storage option {unknown[0]!r}; known are {', '.join(sorted(_OPTIONS))}"
            )
        self.address = HubAddress.parse(url)
        self._timeout_s = timeout_s
        endpoint = (
            storage_options.get("endpoint") or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        )
        self._endpoint = str(endpoint).rstrip("/")
        token = storage_options.get("token")
        self._token = huggingface_hub.get_token() if token is None or token is True else token or None
        self._api = huggingface_hub.HfApi(endpoint=self._endpoint, token=self._token or False)
        self._lock = threading.Lock()
        self._pinned: HubAddress | None = self.address if self.address.is_pinned else None

    def pinned(self) -> HubAddress:
        """The address with the commit in place of the revision; asks the hub the first time.

        Raises:
            StorageError: If there is no such data set or revision, as far as the token may see.
            OSError: If the hub refuses or does not answer, for another attempt.
        """
        with self._lock:
            if self._pinned is None:
                try:
                    commit = self._api.dataset_info(
                        self.address.repo, revision=self.address.revision, timeout=self._timeout_s
                    ).sha
                except _FAILURES as error:
                    raise self._meaning(error) from scrub(error)
                if commit is None or not _COMMIT.fullmatch(commit):
                    raise StorageError(f"the hub names no commit for revision {self.address.revision!r}")
                self._pinned = replace(self.address, revision=commit)
            return self._pinned

    def locate(self, path: str) -> Location:
        """Where a file is asked for. Raises as `pinned`."""
        address = self.pinned()
        url = huggingface_hub.hf_hub_url(
            address.repo,
            f"{address.prefix}/{path}" if address.prefix else path,
            repo_type="dataset",
            revision=address.revision,
            endpoint=self._endpoint,
        )
        headers = {"User-Agent": "reben_cloud"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return Location(url=url, headers=headers, advice=self._advice)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of every file below a folder of the address. Raises as `pinned`."""
        for entry in self._entries(prefix, recursive=True):
            if isinstance(entry, huggingface_hub.RepoFile):
                yield self._below(entry.path), entry.size

    def list_folder(self, prefix: str) -> Listing:
        """What is right in a folder of the address. Raises as `pinned`."""
        files: list[tuple[str, int]] = []
        folders: list[str] = []
        for entry in self._entries(prefix, recursive=False):
            if isinstance(entry, huggingface_hub.RepoFile):
                files.append((self._below(entry.path), entry.size))
            else:
                folders.append(self._below(entry.path))
        return Listing(files=sorted(files), folders=sorted(folders))

    def _below(self, path: str) -> str:
        return path[len(self.address.prefix) :].lstrip("/")

    def _entries(
        self, prefix: str, *, recursive: bool
    ) -> Iterator[huggingface_hub.RepoFile | huggingface_hub.RepoFolder]:
        address = self.pinned()
        folder = "/".join(part for part in (address.prefix, prefix.strip("/")) if part)
        try:
            yield from self._api.list_repo_tree(
                address.repo,
                folder or None,
                recursive=recursive,
                revision=address.revision,
                repo_type="dataset",
            )
        except hub_errors.EntryNotFoundError:
            return
        except _FAILURES as error:
            raise self._meaning(error) from scrub(error)

    @property
    def _advice(self) -> str:
        page = f"{self._endpoint}/datasets/{self.address.repo}"
        return (
            f"accept its terms at {page} if it is gated, and set HF_TOKEN or run `hf auth login`"
            if self._token is None
            else f"accept its terms at {page} if it is gated, and see that the token may read it"
        )

    def _meaning(self, error: Exception) -> OSError:
        name = f"the data set {self.address.repo} on {self._endpoint}"
        if isinstance(error, hub_errors.GatedRepoError):
            return StorageError(f"{name} is gated; {self._advice}")
        if isinstance(error, hub_errors.RevisionNotFoundError):
            return StorageError(f"{name} has no revision {self.address.revision!r}")
        if isinstance(error, hub_errors.RepositoryNotFoundError):
            return StorageError(f"{name} is not there, or it is private; {self._advice}")
        if isinstance(error, hub_errors.OfflineModeIsEnabled):
            return StorageError(
                f"the hub may not be asked: HF_HUB_OFFLINE is set; name a commit ({mask(str(error))})"
            )
        if isinstance(error, hub_errors.HfHubHTTPError) and error.response is not None:
            status, headers = error.response.status_code, error.response.headers
            wait = headers.get("Retry-After", "")
            return RefusedError(
                status,
                f"{self._endpoint} answers with status {status}",
                advice=self._advice,
                wait_s=float(wait) if wait.isdecimal() else 0.0,
            )
        if not isinstance(error, ValueError):
            return SilentError(f"{type(error).__name__}: {mask(str(error))}")
        return StorageError(f"the hub's answer is not understood: {mask(str(error))[:200]}")
