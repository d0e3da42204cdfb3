"""One run of a program that is not part of this package: its log, its output, and what that was made from.

An output appears only when it is complete. Beside the log stands what it was made from: a second run
skips what was made from the same, and refuses what was not.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from reben_cloud.errors import ConflictError, NotFoundError, SourceError
from reben_cloud.files.clutter import glob_data
from reben_cloud.files.whole import write_whole
from reben_cloud.scenes.provenance import differences


def find_program(program: str, advice: str) -> str:
    """The path of a program.

    Args:
        program: Its name or path.
        advice: What to install or to do without it, for the message; it follows the word "install".

    Raises:
        NotFoundError: If it is not installed.
    """
    found = shutil.which(program)
    if found is None:
        raise NotFoundError(f"{program} is not installed; install {advice}")
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run makes, and from what."""

    folder: Path
    """Where the output and ``logs/`` go."""
    name: str
    """Names the log and the record."""
    pattern: str
    """What the name of the output matches."""
    made_from: Mapping[str, str]
    """Inputs and options that an output of an earlier run must have been made from."""

    @property
    def _logs(self) -> Path:
        return self.folder / "logs"

    @property
    def _record(self) -> Path:
        return self._logs / f"{self.name}.json"

    def find_output(self) -> Path | None:
        """The output of an earlier run with the same inputs, None if there is no output.

        Raises:
            ConflictError: If it was made from others, or nothing says from which.
        """
        there = glob_data(self.folder, self.pattern)
        if not there:
            return None
        if len(there) > 1 or not self._record.exists():
            raise ConflictError(
                f"{', '.join(str(path) for path in there)}: nothing says what this was made from; delete it to have it "
                "made again, or give it as finished input instead of the raw product"
            )
        changed = differences(json.loads(self._record.read_text()), self.made_from)
        if changed:
            raise ConflictError(
                f"{there[0]} was made from other inputs: {changed}; delete it to have it made again, or take "
                "an empty folder"
            )
        return there[0]

    def record(self) -> None:
        """Write what the output is made from; before the output, which is what says that all is done."""
        self._logs.mkdir(parents=True, exist_ok=True)
        write_whole(self._record, json.dumps(dict(self.made_from)).encode())

    def make(
        self, command: Callable[[Path], list[str]], *, finish: Callable[[Path], None] = lambda _: None
    ) -> Path:
        """The output: of an earlier run, or of a program that is run now.

        Args:
            command: Folder to write to -> the program and its arguments.
            finish: What is still to be done to the program's output, in place.

        Raises:
            ConflictError: If there is an output that was made from other inputs.
            SourceError: If the program fails, or makes anything but one output.
        """
        if (done := self.find_output()) is not None:
            return done
        log = self._logs / f"{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / f".running-{self.name}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        with log.open("wb") as text:
            arguments = command(scratch)
            text.write((" ".join(arguments) + "\n").encode())
            text.flush()
            status = subprocess.run(arguments, stdout=text, stderr=subprocess.STDOUT, check=False).returncode
        made = glob_data(scratch, self.pattern)
        if status or len(made) != 1:
            last = log.read_text(errors="replace").strip().splitlines()[-1]
            products = f"{len(made)} product{'' if len(made) == 1 else 's'}"
            raise SourceError(
                f"{self.name}: {Path(arguments[0]).name} ended with status {status} and made {products}; "
                f"its last words: {last!r}; all of them: {log}"
            )
        finish(made[0])
        self.record()
        target = self.folder / made[0].name
        made[0].rename(target)
        shutil.rmtree(scratch)
        return target
