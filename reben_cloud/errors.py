"""The errors that reben_cloud raises, one tree; each is also the builtin a caller would catch.

    RebenError
    ├── InvalidPatchError  (ValueError)       the arrays or bytes of a patch are not what reBEN defines
    ├── SourceError        (ValueError)       a source of patches is not what it must be
    ├── NotFoundError      (LookupError)      no such dataset, patch, product, split or shard
    ├── ChecksumError      (ValueError)       the bytes read are not the bytes that were written
    ├── StorageError       (OSError)          the store refused, or failed after the retries
    │   ├── UnreachableError (TimeoutError)   nobody answers, or the answers stop
    │   └── ChangedError                      the object is not the one that was opened
    ├── ConflictError      (FileExistsError)  the root exists, or somebody else is building it
    ├── NotFiniteError     (FloatingPointError)  a model's output, loss or weights are infinite or no number
    ├── AddressError       (OSError)          the address or port to serve at cannot be had
    ├── ForkError          (RuntimeError)     used in a forked child, where its clients would hang
    └── MissingExtraError  (ImportError)      an optional dependency is not installed

Wrong arguments stay ``ValueError`` and ``TypeError``.
"""


class RebenError(Exception):
    """Base of every error that reben_cloud raises on purpose."""


class InvalidPatchError(RebenError, ValueError):
    """The arrays or bytes of a patch do not have the bands, shape or dtype that reBEN defines."""


class SourceError(RebenError, ValueError):
    """A source of patches (folder, archive, LMDB, metadata) is not what it must be."""


class NotFoundError(RebenError, LookupError):
    """There is no such dataset, patch, product, split or shard."""

    def __str__(self) -> str:
        # LookupError's subclasses print a repr in some cases; a message must stay a message.
        return str(self.args[0]) if self.args else ""


class ChecksumError(RebenError, ValueError):
    """The bytes read are not the bytes that were written."""


class StorageError(RebenError, OSError):
    """The store refused the request, or still failed after the retries."""


class UnreachableError(StorageError, TimeoutError):
    """The store does not answer, or its answers stop: what is asked of it next will fare no better."""


class ChangedError(StorageError):
    """The object was written again since it was opened: bytes of two versions must not be mixed."""


class ConflictError(RebenError, FileExistsError):
    """The root is published already, or another build is at work on it."""


class NotFiniteError(RebenError, FloatingPointError):
    """Outputs, the loss or weights of a model are infinite or not a number."""


class AddressError(RebenError, OSError):
    """The address or port to serve at is taken, or not this machine's."""


class ForkError(RebenError, RuntimeError):
    """An object-store client was used in a forked child process, where it would hang."""


class MissingExtraError(RebenError, ImportError):
    """An optional dependency is not installed."""


def missing_extra(package: str, extra: str, cause: Exception | None = None) -> MissingExtraError:
    """The error to raise when `package` cannot be imported, with what to do about it.

    Args:
        package: What was imported.
        extra: Which extra brings it.
        cause: What the import raised; a RuntimeError is torchvision's, of a build that does not fit.
    """
    if isinstance(cause, RuntimeError):
        return MissingExtraError(
            f"{package} does not load: {cause}; timm and torchmetrics need torchvision, whose build must fit "
            "that of torch: reinstall both from the same index"
        )
    return MissingExtraError(f"{package} is not installed; it comes with: pip install 'reben-cloud[{extra}]'")
