"""A layer whose making is killed, at any moment, is the same in the end as one that was made in one go."""

from __future__ import annotations

import random
import signal

import pytest

import reben_cloud as rc
from tests.forked import ForkServer
from tests.roots import synthetic_root

MAKE = """
import os, signal, sys
import reben_cloud as rc
from tests.layers.data import ELEVATION, elevations

root, dest, scratch, left = *sys.argv[1:4], int(sys.argv[4])

def progress(items, total, what):
    global left
    for item in items:
        yield item
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

rc.write_layer(
    dest, rc.open(root), name="elevation", tensors=ELEVATION, patches=elevations, scratch=scratch, progress=progress
)
"""
"""Makes a layer, and is killed after so many patches and shards, counted together; never for 0."""


@pytest.fixture
def make():
    """Runs it, and gives its exit status."""

    def run(*arguments):
        process = server.start(MAKE, *map(str, arguments))
        process.communicate()
        return process.returncode

    with ForkServer("import reben_cloud, reben_cloud.layers.write, tests.layers.data") as server:
        yield run


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "_build" not in path.parts
    }


@pytest.mark.slow
def test_ten_kills_leave_no_trace(make, tmp_path):
    synthetic_root(tmp_path / "root", 44, shard_samples=4)
    assert make(tmp_path / "root", tmp_path / "whole", tmp_path / "scratch", 0) == 0
    draw = random.Random(5)

    for _ in range(10):
        killed = make(tmp_path / "root", tmp_path / "layer", tmp_path / "scratch", draw.randint(2, 6))
        assert killed == -signal.SIGKILL
        with pytest.raises(rc.NotFoundError, match="no layer is published"):
            rc.open_layer(tmp_path / "layer")

    assert make(tmp_path / "root", tmp_path / "layer", tmp_path / "scratch", 0) == 0
    assert tree(tmp_path / "layer") == tree(tmp_path / "whole")
    assert not any((tmp_path / "scratch").iterdir())
