"""What the failures of stores mean: an error with a way out, and whether another attempt is of use."""

from __future__ import annotations

import re
from collections.abc import Sequence

from obstore import exceptions as obs_errors

from reben_cloud.errors import ChangedError, StorageError, UnreachableError
from reben_cloud.store.address import WaysOut

_PASSING = (408, 425, 429)
"""Statuses below 500 that are answered otherwise a little later."""


class RefusedError(OSError):
    """A web server answered, but not with what was asked for.

    Args:
        status: The HTTP status.
        cause: What was asked and answered, without secrets.
        advice: The way out, where the status does not say it.
        wait_s: How long the server asks to wait, seconds.
    """

    def __init__(self, status: int, cause: str, *, advice: str = "", wait_s: float = 0.0) -> None:
        super().__init__(cause)
        self.status, self.advice, self.wait_s = status, advice, wait_s


class SilentError(OSError):
    """Nobody answers, or an answer stopped."""


_NO_ANSWER = "no answer from or no connection to the store"

_NO_BUCKET = "there is no such bucket"
_DENIED = "permission denied"

_REFUSALS: Sequence[tuple[Sequence[str], str, str]] = (
    (
        ("NoSuchBucket", "NoSuchContainer", "ContainerNotFound"),
        _NO_BUCKET,
        "",
    ),
    (
        ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"),
        "the clock of this machine is not that of the store",
        "set the clock (NTP): a signature more than 15 minutes off is refused",
    ),
    (
        ("ExpiredToken", "TokenRefreshRequired"),
        "the credentials have expired",
        "get new ones (AWS_SESSION_TOKEN goes with its key and secret)",
    ),
    (
        (
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "InvalidToken",
            "InvalidClientTokenId",
            "UnrecognizedClient",
            "AuthFailure",
            "InvalidSecurity",
            "MissingSecurity",
            "NotSignedUp",
            "AccountProblem",
            "AllAccessDisabled",
            "AccessDenied",
            "InvalidPayer",
        ),
        _DENIED,
        "",
    ),
)
"""Codes by which a store refuses who asks, what they mean and what to do, where that does not depend on the store;
another attempt is no use."""

_GARBLED = ("XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody")
"""Codes by which a store says that bytes did not come to it as they were sent: they are sent again."""


def meaning(error: Exception, *, verb: str, name: str, ways_out: WaysOut) -> OSError:
    """What a client's error means to a caller.

    Args:
        error: The error, scrubbed.
        verb: What was tried.
        name: What it was tried on.
        ways_out: What to do, by the kind of store.
    """
    if isinstance(error, StorageError):
        return type(error)(f"cannot {verb} {name}: {error}")
    if isinstance(error, obs_errors.PreconditionError):
        return ChangedError(
            f"cannot {verb} {name}: it has changed since it was opened ({_first_line(str(error))})"
        )
    if isinstance(error, obs_errors.NotFoundError | FileNotFoundError):
        return FileNotFoundError(f"{name}: no such object")
    if isinstance(error, obs_errors.AlreadyExistsError | FileExistsError):
        return FileExistsError(f"{name} exists already")
    if isinstance(error, RefusedError):
        return _meaning_of_status(error, verb=verb, name=name)
    if isinstance(error, SilentError):
        return UnreachableError(
            f"cannot {verb} {name}: no answer from or no connection to the store ({error}); {ways_out.unreachable}"
        )
    # obstore sorts a refusal under several types; its text has the server's own code.
    text = str(error)
    cause = _first_line(text)
    for codes, meant, advice in _REFUSALS:
        if any(code in text for code in codes):
            advice = advice or (ways_out.no_bucket if meant == _NO_BUCKET else ways_out.refused)
            return StorageError(f"cannot {verb} {name}: {meant} ({cause}); {advice}")
    if any(code in text for code in _GARBLED):
        return StorageError(
            f"cannot {verb} {name}: the bytes that came to the store are not those that were sent ({cause}); "
            "see what lies between, such as a proxy, or use https"
        )
    refused = obs_errors.PermissionDeniedError | obs_errors.UnauthenticatedError | PermissionError
    # The answer to a HEAD has no code: an expired token is a bare 400.
    if isinstance(error, refused) or re.search(r"HEAD .*status code: 40[013]", cause):
        return StorageError(f"cannot {verb} {name}: {_DENIED} ({cause}); {ways_out.refused}")
    if "Error performing token request" in text:  # of a machine's own account, which not every machine has
        return StorageError(
            f"cannot {verb} {name}: no credentials are given, and this machine has none of its own ({cause}); "
            f"{ways_out.refused}"
        )
    if _is_silence(text):
        return UnreachableError(
            f"cannot {verb} {name}: no answer from or no connection to the store ({cause}); {ways_out.unreachable}"
        )
    return StorageError(f"cannot {verb} {name}: {cause}")


def may_pass(error: Exception) -> bool:
    """Whether what went wrong can be otherwise the next time."""
    if isinstance(error, StorageError):
        return False
    if isinstance(error, SilentError):
        return True
    if isinstance(error, RefusedError):
        return error.status in _PASSING or error.status >= 500
    text = str(error)
    if any(code in text for codes, _, _ in _REFUSALS for code in codes):
        return False
    if any(code in text for code in _GARBLED):
        return True
    status = re.search(r"status code: (\d{3})", text)
    if status is None:
        return _is_silence(text) or "HTTP error" in text
    return int(status[1]) in _PASSING or status[1] >= "500" or "RequestTimeout" in text


def wait_s(error: Exception) -> float:
    """How long the store asks to wait before the next attempt, seconds."""
    return error.wait_s if isinstance(error, RefusedError) else 0.0


def _meaning_of_status(error: RefusedError, *, verb: str, name: str) -> OSError:
    if error.status in (404, 410):
        return FileNotFoundError(f"{name}: no such object")
    if error.status in (401, 403):
        advice = error.advice or "check the user, the password and the query of the URL"
        return StorageError(f"cannot {verb} {name}: permission denied ({error}); {advice}")
    return StorageError(f"cannot {verb} {name}: {error}" + (f"; {error.advice}" if error.advice else ""))


def _is_silence(text: str) -> bool:
    """Whether nobody answered, or the answer stopped."""
    return "error sending request" in text or "body error" in text or "TimedOut" in text


def _first_line(text: str) -> str:
    """One line of an obstore error, which ends with a debug dump of many lines."""
    line = text.split("\n\nDebug source:", 1)[0].splitlines()
    # Of a document that begins there, the first line says nothing if it is its declaration alone.
    if not line:
        return "unknown error"
    return re.sub(r": (?:<\?xml[^>]*\?>\s*(?:<Error>.*)?|<Error>.*)$", _said, line[0]).strip()


def _said(document: re.Match[str]) -> str:
    """What people can read of the document that tells of an error."""
    code, message = (re.search(rf"<{tag}>([^<]+)</{tag}>", document[0]) for tag in ("Code", "Message"))
    return "".join(f": {found[1].strip()}" for found in (code, message) if found)
