"""What a read or write may cost before it is given up, and the attempts it has made."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

PROGRESS_BYTES = 2**18
"""What of an answer counts as progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What one read or write may cost before it is given up: attempts and seconds without progress.

    Both count from the last progress, which is `PROGRESS_BYTES` of an answer: a slow download goes on for as
    long as it takes, and one below about 10 kB/s counts as stalled. With the defaults nothing takes
    longer than 90 s without progress.
    """

    attempts: int = 7
    """Most attempts. The pauses between them, 0.1 + 0.2 + ... + 3.2 s, see a throttling store through."""
    seconds: float = 60.0
    """No attempt starts later than this."""
    silence_s: float = 20.0
    """An attempt fails when nothing comes for so long."""
    request_s: float = 25.0
    """An attempt to read ends after so long; the next goes on where it stopped."""
    write_bytes_per_s: float = 250_000.0
    """An object is written in one request, of which nothing is heard before its end: it has the time that its bytes
    take at this rate, besides `silence_s`. A slower way to the store is a stalled one."""

    def for_write(self, nbytes: int) -> Budget:
        """The budget of writing an object of so many bytes: all its times are longer by what they take.

        In steps of half a silence, so that objects of about one size share a client.
        """
        step = self.silence_s / 2
        more = step * (nbytes // (self.write_bytes_per_s * step))
        if not more:
            return self
        return replace(
            self,
            seconds=self.seconds + more,
            silence_s=self.silence_s + more,
            request_s=self.request_s + more,
        )


BUDGET = Budget()
"""That of every store which is not given another."""


class Tries:
    """The attempts of one call so far.

    Args:
        budget: What it may cost.
        waited_s: Seconds without progress before it, which count: others were waited for.
        tell: Called at every progress.
    """

    def __init__(
        self, budget: Budget, *, waited_s: float = 0.0, tell: Callable[[], None] | None = None
    ) -> None:
        self._budget, self._tell = budget, tell
        self._failed, self._came, self._since, self._waited = 0, 0, time.monotonic() - waited_s, 0.0

    def progress(self, nbytes: int = PROGRESS_BYTES) -> None:
        """So many bytes came: count from here, if they are enough."""
        self._came += nbytes
        if self._came >= PROGRESS_BYTES:
            self._failed, self._came, self._since = 0, 0, time.monotonic()
            if self._tell is not None:
                self._tell()

    def wait(self, asked_s: float = 0.0) -> bool:
        """After a failure: wait, at least as long as the store asks, and say whether to try again."""
        self._failed += 1
        # Jitter: the readers of a store that just failed must not come back all at once.
        pause = asked_s + 0.1 * 2 ** (self._failed - 1) * (0.75 + random.random() / 2)  # noqa: S311
        self._waited = time.monotonic() - self._since
        if self._failed >= self._budget.attempts or self._waited + pause > self._budget.seconds:
            return False
        time.sleep(pause)
        return True

    def __str__(self) -> str:
        attempts = "attempt" if self._failed == 1 else "attempts"
        return f"given up after {self._failed} {attempts} in {self._waited:.0f} s without progress"
