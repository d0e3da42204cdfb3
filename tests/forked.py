"""Python processes that start at once, for tests that kill many: one process imports, and forks the others.

Most of what twenty kills cost is that twenty new interpreters import the same modules, a second or two each. Here a
server does it once. It starts no thread and opens nothing, so a process that it forks is as a new interpreter is after
its imports, and dies like one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, BinaryIO

SERVER = """
import json, os, socket, sys, traceback

def become(script, arguments, environment):
    os.environ.update(environment)
    sys.argv = ["script", *arguments]
    code = 1
    try:
        exec(compile(script, "script", "exec"), {"__name__": "__main__"})
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

with socket.socket(fileno=int(sys.argv[1])) as parent:
    exec(sys.argv[2])
    parent.sendall(b"ready\\n")
    while True:
        line, fds, _, _ = socket.recv_fds(parent, 1 << 20, 1)
        if not line:
            break
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                parent.close()
                os.dup2(fds[0], 1)
                become(**order)
            os.close(fds[0])
        parent.sendall(b"%d\\n" % answer)
"""


class Forked:
    """A process that was forked: the part of `subprocess.Popen` that tests of kills use. Its stderr is ours."""

    def __init__(self, server: ForkServer, pid: int, stdout: BinaryIO) -> None:
        self.pid = pid
        """Its number, which no other process has before `wait`."""
        self.stdout = stdout
        """What it prints."""
        self.returncode: int | None = None
        """Exit status, negative after a signal; None before `wait`."""
        self._server = server

    def kill(self) -> None:
        """Send SIGKILL, whether it has ended or not."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; the exit status."""
        if self.returncode is None:
            self.returncode = self._server.ask({"wait": self.pid})
        return self.returncode

    def communicate(self) -> bytes:
        """Wait for its end; what it still prints."""
        with self.stdout:
            out = self.stdout.read()
        self.wait()
        return out


class ForkServer:
    """A process that has imported what others need, and forks them.

    Args:
        imports: Import statements. What they load must start no thread and use no store.
    """

    def __init__(self, imports: str) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(theirs.fileno()), imports],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self._answers = self._socket.makefile("rb")
        if self._answers.readline() != b"ready\n":
            raise RuntimeError(f"the server could not import: exit status {self._process.wait()}")

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait()

    def start(
        self, script: str, *arguments: str | os.PathLike[str], env: Mapping[str, str] | None = None
    ) -> Forked:
        """Run a script in a process of its own.

        Args:
            script: Its text, run as ``__main__``.
            arguments: ``sys.argv[1:]``.
            env: Variables that it has beside those of the server.
        """
        words = [os.fspath(argument) for argument in arguments]
        reading, writing = os.pipe()
        try:
            pid = self.ask({"script": script, "arguments": words, "environment": dict(env or {})}, writing)
        finally:
            os.close(writing)
        return Forked(self, pid, os.fdopen(reading, "rb"))

    def ask(self, order: Mapping[str, Any], *fds: int) -> int:
        """Send an order, and wait for its answer: the number of a process, or an exit status."""
        socket.send_fds(self._socket, [json.dumps(order).encode()], fds)
        return int(self._answers.readline())
