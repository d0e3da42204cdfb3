"""Faults that a stranger found once: each stays found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.errors import ChecksumError, ConflictError, SourceError
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from tests.conftest import PATIENT_S
from tests.roots import synthetic_root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "root"
    synthetic_root(root, 90)
    return root


def test_batches_in_memory_that_numpy_does_not_own_are_not_overwritten_while_held(made, monkeypatch):
    """As on a CUDA machine, where batches lie in pinned memory; pinning itself needs a device."""
    torch = pytest.importorskip("torch")
    from reben_cloud.torch import StreamLoader

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    held, copies = [], []
    for batch in StreamLoader(rc.open(made).search(), batch_size=8, pin_memory=True):
        held.append({name: tensor[1:] for name, tensor in batch.items()})
        copies.append({name: tensor[1:].clone() for name, tensor in batch.items()})
        del batch

    assert len(held) == 12
    for now, then in zip(held, copies, strict=True):
        for name in now:
            assert torch.equal(now[name], then[name])


def test_a_build_leaves_foreign_files_alone_and_says_that_the_folder_is_not_empty(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes#1").write_text("precious")
    (tmp_path / "readme.txt").write_text("mine")
    source, metadata = open_source("synthetic:3")

    with pytest.raises(ConflictError, match=r"not empty: it holds readme\.txt"):
        build(make_plan(source, metadata, open_store(tmp_path)))

    assert (tmp_path / "sub" / "notes#1").read_text() == "precious"


def test_rows_of_a_file_that_changed_are_verified_again(made, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(made, root)
    selection = rc.open(root).search(split="train", limit=3)
    loader = RawLoader(selection, modalities=("s2",))
    list(loader)
    for path in (root / "shards").rglob("*-s2-*.tar"):
        data = bytearray(path.read_bytes())
        for start in range(3000, len(data), 10_000):
            data[start] ^= 255
        path.write_bytes(data)

    with pytest.raises(ChecksumError, match="xxh3 differs"):
        list(loader)


def test_a_truncated_lmdb_is_refused_before_a_page_is_missed(made, tmp_path):
    rc.open(made).search().export_lmdb(tmp_path / "export")
    os.truncate(tmp_path / "export" / "data.mdb", 5_000_000)

    with pytest.raises(SourceError, match="truncated"):
        list(RawLoader(rc.open(tmp_path / "export").search(), batch_size=4))


def test_a_forked_child_is_told_and_does_not_hang(made):
    script = """
import os, sys
import reben_cloud as rc
len(rc.open(sys.argv[1]).search())
if os.fork() == 0:
    try:
        len(rc.open(sys.argv[1]).search())
    except rc.ForkError as error:
        os.write(1, b"refused" if b"forkserver" in str(error).encode() else b"?")
    os._exit(0)
os.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, made], capture_output=True, text=True, timeout=PATIENT_S, check=True
    )

    assert done.stdout == "refused"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "reben_cloud root", "version": 1}'])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)

    with pytest.raises(ChecksumError, match=r"manifest\.json is not the manifest"):
        rc.open(tmp_path)


def test_an_unknown_modality_is_refused(tmp_path):
    source, metadata = open_source("synthetic:3")

    with pytest.raises(ValueError, match="unknown modality 's3'"):
        make_plan(source, metadata, open_store(tmp_path), modalities=["s3"])
