"""The server that forks: its processes are of their own, end as they end, and are told apart."""

import signal

from tests.forked import ForkServer

SCRIPT = """
import os, sys, time
print(sys.argv[1], os.environ["WHAT"], "json" in sys.modules, flush=True)
if sys.argv[1] == "wait":
    time.sleep(60)
if sys.argv[1] == "fail":
    raise ValueError("as asked")
"""


def test_processes_end_with_their_own_status(capfd):
    with ForkServer("import json") as server:
        waiting = server.start(SCRIPT, "wait", env={"WHAT": "one"})
        assert waiting.stdout.readline() == b"wait one True\n"
        fine, failed = (server.start(SCRIPT, word, env={"WHAT": "two"}) for word in ("fine", "fail"))

        assert fine.communicate() == b"fine two True\n"
        assert failed.communicate() == b"fail two True\n"
        waiting.kill()
        assert waiting.communicate() == b""
        assert [p.returncode for p in (fine, failed, waiting)] == [0, 1, -signal.SIGKILL]
    assert "ValueError: as asked" in capfd.readouterr().err
