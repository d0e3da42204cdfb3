"""The private folder below the shared temporary one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

from reben_cloud.files import scratch
from reben_cloud.files.scratch import private_scratch
from reben_cloud.scenes.destination import prepared_folder
from reben_cloud.store import open_store


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("REBEN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_it_is_private_and_found_again(places):
    first = private_scratch()

    assert first == private_scratch()
    assert first.parent == places / "tmp"
    assert first.stat().st_mode & 0o777 == 0o700
    assert len(first.name) == len("reben-cloud-") + 32
    assert ((places / "cache" / "scratch-name").stat().st_mode & 0o077) == 0


@pytest.mark.slow
def test_another_process_of_the_user_finds_it_and_another_user_has_another(places, monkeypatch):
    command = [
        sys.executable,
        "-c",
        "from reben_cloud.files.scratch import private_scratch; print(private_scratch())",
    ]
    environment = {**os.environ, "TMPDIR": str(places / "tmp")}
    same = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert same == str(private_scratch())
    monkeypatch.setenv("REBEN_CACHE", str(places / "other"))
    assert str(private_scratch()) != same


@pytest.mark.parametrize("kind", ["file", "link", "open"])
def test_what_others_laid_there_is_refused(places, kind):
    folder = private_scratch()
    folder.rmdir()
    if kind == "file":
        folder.write_text("")
    elif kind == "link":
        (places / "theirs").mkdir(mode=0o700)
        folder.symlink_to(places / "theirs")
    else:
        folder.mkdir()
        folder.chmod(0o777)

    with pytest.raises(PermissionError, match="not a folder of yours alone"):
        private_scratch()


def test_where_there_are_no_owners_and_modes_it_is_found_again(monkeypatch):
    folder = private_scratch()
    folder.chmod(0o777)  # as Windows says of every folder
    monkeypatch.delattr(os, "getuid")

    assert private_scratch() == folder


def test_without_a_place_to_keep_the_name_it_is_the_processs(places, monkeypatch, caplog):
    (places / "file").write_text("")
    monkeypatch.setenv("REBEN_CACHE", str(places / "file" / "below"))

    assert private_scratch().name == f"reben-cloud-{scratch._OF_PROCESS}"
    assert "name a folder for it (--scratch" in caplog.text


def test_all_that_is_kept_in_the_temporary_folder_is_in_it(places):
    assert (
        private_scratch() in prepared_folder(open_store("s3://bucket/root", {"region": "us-east-1"})).parents
    )
    assert list((places / "tmp").iterdir()) == [private_scratch()]
