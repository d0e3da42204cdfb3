"""The first and the last step of whatever publishes.

That is the document that says what is begun, and the one that makes a root or a layer of it when all else is there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from reben_cloud.errors import ConflictError, StorageError
from reben_cloud.store import Store

logger = logging.getLogger(__name__)


def begin(store: Store, path: str, document: bytes) -> bool:
    """Put the document that says what is begun, unless there is one; whether it was put.

    What follows relies on a store that does not overwrite when it is told not to, so that is tried with the same
    document, and a warning is logged where the store does not keep it.

    Args:
        store: Where it is begun.
        path: Of the document.
        document: Its bytes.

    Returns:
        False where there is one already: another process's, or our own whose answer was lost.
    """
    try:
        store.put(path, document, create=True)
    except FileExistsError:
        return False
    if not store.is_local:
        with suppress(FileExistsError):
            store.put(path, document, create=True)
            logger.warning(
                "%s: this store overwrites objects although it is told not to (If-None-Match: *), and would not tell "
                "two processes that write here at once: run one at a time",
                store.url,
            )
    return True


def check_presence(store: Store, written: Mapping[str, int]) -> None:
    """Compare what was written with what the store lists.

    Args:
        store: Where it was written.
        written: Path -> size in bytes of each object.

    Raises:
        StorageError: If one is not there, or has another size.
    """
    sizes = dict(store.list())
    for path, nbytes in written.items():
        if sizes.get(path) != nbytes:
            raise StorageError(
                f"{store.url}/{path}: was written with {nbytes:,} bytes, the store now lists "
                f"{sizes.get(path, 'nothing')}; does something else write here? Run the same again"
            )


def commit(store: Store, path: str, document: bytes) -> None:
    """Put the document at the commit point, unless it is there already.

    Args:
        store: Where the rest is.
        path: `layout.MANIFEST` of a root, `layout.LAYER_MANIFEST` of a layer.
        document: Its bytes.

    Raises:
        ConflictError: If another process has published something else there meanwhile.
    """
    try:
        store.put(path, document, create=True)
    except FileExistsError:
        # Our own put, repeated after its answer was lost, says so too.
        if bytes(store.get(path)) != document:
            raise ConflictError(f"{store.url} was published by another process meanwhile") from None
