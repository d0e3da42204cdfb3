"""Where a system lacks what Linux and macOS have, things work another way, or say what is missing."""

import os
import subprocess
import sys
import threading

import pytest

from reben_cloud.files import system
from tests.conftest import PATIENT_S

BARE = """
import os, signal, sys
for module in ("fcntl", "resource", "grp", "pwd", "termios"):
    sys.modules[module] = None
for name in ("pread", "pwrite", "preadv", "pwritev", "posix_fadvise", "sysconf", "sched_getaffinity", "O_CLOEXEC"):
    delattr(os, name)
delattr(signal, "pthread_sigmask")
"""
"""A Python without what Windows lacks."""


def run_bare(code, folder):
    return subprocess.run(
        [sys.executable, "-c", BARE + code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENT_S,
        check=False,
    )


@pytest.mark.slow  # a process that imports the package
def test_without_posix_the_package_is_imported_builds_streams_and_verifies(tmp_path):
    ended = run_bare(
        """
import numpy as np
import reben_cloud as rc
from reben_cloud.build import build, open_plan
from reben_cloud.checks.doctor import diagnose
from reben_cloud.checks.verify import verify
from reben_cloud.stream import RawLoader
from pathlib import Path

build(open_plan("synthetic:6", "root", scratch=Path("scratch"))[0])
ds = rc.open("root")
seen = np.concatenate([batch["index"].copy() for batch in RawLoader(ds.search(), batch_size=2)])
print(sorted(seen.tolist()), verify(ds, deep=True).problems, len(ds.search(split="train")) > 0)
print(any(finding.level == "problem" for finding in diagnose("root", {}, try_write=False)))
for use in (lambda: ds.search().export_png("png"), lambda: RawLoader(ds.search(), batch_size=2, cache_dir="cache")):
    try:
        use()
    except rc.RebenError as error:
        print(error)
print(sorted(os.listdir(".")))
""",
        tmp_path,
    )

    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == "[0, 1, 2, 3, 4, 5] () True"
    assert lines[1] == "False"
    assert "an export needs locks between processes" in lines[2]
    assert "a shard cache (cache_dir) needs locks between processes" in lines[3]
    assert all("wsl --install" in line for line in lines[2:4])
    assert lines[4] == "['root', 'scratch']"


@pytest.fixture(params=[True, False], ids=["by place", "by seeking"])
def places(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(system, "_HAS_PLACES", False)
        monkeypatch.delattr(os, "preadv")
        monkeypatch.delattr(os, "pwritev")


@pytest.mark.usefixtures("places")
def test_nothing_is_lost_when_a_write_takes_a_part(tmp_path, monkeypatch):
    one, several = os.pwrite, getattr(os, "pwritev", None)
    monkeypatch.setattr(os, "pwrite", lambda file, data, start: one(file, bytes(data[:3]), start))
    monkeypatch.setattr(os, "write", lambda file, data, write=os.write: write(file, bytes(data[:3])))
    if several:
        monkeypatch.setattr(os, "pwritev", lambda file, pieces, start: several(file, pieces[:1], start))
    file = system.open_file(tmp_path / "x", os.O_RDWR | os.O_CREAT)

    system.write_at(file, b"0123456789", 2)
    system.write_pieces_at(file, [b"abcd", memoryview(b""), memoryview(b"efghi")], 12)

    os.close(file)
    assert (tmp_path / "x").read_bytes() == b"\0\x000123456789abcdefghi"


@pytest.mark.usefixtures("places")
def test_bytes_are_read_and_written_at_their_place_by_many_threads(tmp_path):
    path = tmp_path / "file"
    path.touch()
    file = system.open_file(path, os.O_RDWR)
    wrong = []

    def work(number):
        for row in range(number, 2000, 4):
            data = row.to_bytes(4, "little")
            if row % 2:
                system.write_at(file, data, 4 * row)
            else:
                system.write_pieces_at(file, [data[:1], data[1:]], 4 * row)
            pieces = [bytearray(1), bytearray(3)]
            if system.preadv(file, pieces, 4 * row) != 4 or b"".join(pieces) != system.pread(
                file, 4, 4 * row
            ):
                wrong.append(row)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(file)

    assert not wrong
    assert path.read_bytes() == b"".join(row.to_bytes(4, "little") for row in range(2000))


@pytest.mark.usefixtures("places")
def test_a_read_beyond_the_end_is_short(tmp_path):
    (tmp_path / "file").write_bytes(b"abcde")
    file = system.open_file(tmp_path / "file", os.O_RDONLY)
    pieces = [bytearray(2), bytearray(4)]

    assert system.pread(file, 9, 3) == b"de"
    assert system.preadv(file, pieces, 1) == 4
    assert bytes(pieces[0] + pieces[1][:2]) == b"bcde"
    os.close(file)
