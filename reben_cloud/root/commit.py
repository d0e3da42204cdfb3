"""The last step of whatever publishes: the document that makes a root or a layer one, put when all else is there."""

from __future__ import annotations

from collections.abc import Mapping

from reben_cloud.errors import ConflictError, StorageError
from reben_cloud.store import Store


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
