"""Whole files, locks and complete writes, with processes that are killed and disks that take a part."""

import os
import signal
import subprocess
import sys
import time

import pytest

from reben_cloud.files import whole as files


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"old")

    def half():
        with files.replacing(path) as new:
            new.write_bytes(b"half")
            assert path.read_bytes() == b"old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]

    files.write_whole(path, b"new", sync=True)

    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


HOLD = """
import sys, time
from reben_cloud.files import whole as files
with files.locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_goes_with_the_process_that_holds_it(tmp_path, kind):
    path = tmp_path / "lock"
    if kind == "folder":
        path.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"

        with pytest.raises(files.Locked, match="lock is in use by another process"), files.locked(path):
            raise AssertionError

        holder.send_signal(signal.SIGKILL)
        begin = time.monotonic()
        with files.locked(path, wait=True):
            assert time.monotonic() - begin < 30
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_who_waited_for_a_file_that_is_gone_locks_the_new_one(tmp_path):
    path = tmp_path / "lock"

    with files.locked(path) as first:
        path.unlink()
        with files.locked(path) as second:
            assert not os.path.samestat(os.fstat(first), os.fstat(second))

    with pytest.raises(FileNotFoundError), files.locked(tmp_path / "none", create=False):
        raise AssertionError
