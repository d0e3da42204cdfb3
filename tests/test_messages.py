"""What a user sees when something is wrong: one line that names it, exit code 1, no half-published root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from reben_cloud.sources.synthetic import synthetic_metadata
from reben_cloud.store import BUDGET


@pytest.fixture
def folders(shared, tmp_path):
    """The real S2 patch of the official layout, and its metadata file."""
    source = shared / "data" / "rico_hdl_bigearthnet" / "tiffs" / "BigEarthNet" / "BigEarthNet-S2"
    shutil.copytree(source, tmp_path / "source" / "BigEarthNet-S2")
    for path in (tmp_path / "source").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    official = shared / "data" / "bigearthnet_pipeline" / "metadata.parquet"
    return tmp_path / "source", official


def band(folder, name):
    return next(folder.rglob(f"*_{name}.tif"))


def refused(run, tmp_path, *args):
    """Run a build that must fail; its one line, without the program's name."""
    code, _, err = run("build", *args)
    assert code == 1
    assert not list(tmp_path.rglob("manifest.json"))
    lines = [line for line in err.splitlines() if line.startswith("reben-cloud: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


def rewrite(path, change):
    array = change(tifffile.imread(path))
    tifffile.imwrite(path, array)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda a: a.astype(np.float32), ["B05", "uint16", "float32"], id="dtype"),
        pytest.param(lambda a: a[:40], ["B05", "(60, 60)", "(40, 60)"], id="shape"),
    ],
)
def test_a_wrong_band_is_named(run, folders, tmp_path, change, words):
    source, official = folders
    rewrite(band(source, "B05"), change)

    line = refused(run, tmp_path, source, tmp_path / "root", "--metadata", official)

    assert "T33UUP_75_43" in line
    for word in words:
        assert word in line


@pytest.mark.slow
def test_a_truncated_tiff_is_named(run, folders, tmp_path):
    source, official = folders
    path = band(source, "B08")
    path.write_bytes(path.read_bytes()[:5000])

    line = refused(run, tmp_path, source, tmp_path / "root", "--metadata", official)

    assert path.name in line
    assert "truncated" in line


@pytest.mark.slow
def test_a_missing_band_is_named(run, folders, tmp_path):
    source, official = folders
    band(source, "B8A").unlink()

    line = refused(run, tmp_path, source, tmp_path / "root", "--metadata", official)

    assert "B8A" in line
    assert "T33UUP_75_43" in line


@pytest.mark.slow
def test_a_patch_without_metadata_is_named(run, folders, tmp_path):
    source, official = folders
    rows = pq.read_table(official)
    ids = pa.array([str(i) for i in rows.column("patch_id").to_pylist()])
    others = tmp_path / "metadata.parquet"
    pq.write_table(rows.filter(np.array([not i.endswith("T33UUP_75_43") for i in ids.to_pylist()])), others)

    line = refused(run, tmp_path, source, tmp_path / "root", "--metadata", others)

    assert "T33UUP_75_43" in line
    assert "metadata" in line


@pytest.mark.slow
def test_an_s1_name_that_pairs_with_nothing_is_named(run, shared, tmp_path):
    name = "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_70_48"
    real = shared / "data" / "rico_hdl_bigearthnet" / "tiffs" / "BigEarthNet" / "BigEarthNet-S1"
    stranger = name.replace("_70_48", "_70_90")
    folder = tmp_path / "source" / "BigEarthNet-S1" / stranger.rsplit("_", 3)[0] / stranger
    folder.mkdir(parents=True)
    for path in (real / name.rsplit("_", 3)[0] / name).iterdir():
        shutil.copy(path, folder / path.name.replace(name, stranger))
    official = shared / "data" / "bigearthnet_pipeline" / "metadata.parquet"

    line = refused(run, tmp_path, tmp_path / "source", tmp_path / "root", "--metadata", official)

    assert stranger in line
    assert "pairs with no patch" in line


def test_a_typo_in_the_source_is_said(run, tmp_path):
    line = refused(run, tmp_path, tmp_path / "sorce", tmp_path / "root")

    assert "sorce" in line


def test_a_root_without_manifest_is_no_dataset(run, tmp_path):
    (tmp_path / "root" / "shards").mkdir(parents=True)

    code, out, err = run("info", tmp_path / "root")

    assert (code, out) == (1, "")
    assert "no manifest.json, so no dataset is published there" in err


def test_a_wrong_endpoint_is_named(run, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-seen")

    code, _, err = run("info", "s3://bucket/root", "--endpoint-url", "http://127.0.0.1:9")

    assert code == 1
    assert "no connection to the store" in err
    assert "not-to-be-seen" not in err


def damaged(path, kind):
    data = bytearray(path.read_bytes())
    match kind:
        case "cut":
            del data[len(data) // 2 :]
        case "page":
            data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
        case "footer":
            data[-400:-8] = bytes(392)
        case "empty":
            data.clear()
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut", "page", "footer", "empty"])
def test_damaged_tables_are_named(run, tmp_path, kind):
    root, official = tmp_path / "root", tmp_path / "metadata.parquet"
    assert run("build", "synthetic:3", root)[0] == 0
    pq.write_table(synthetic_metadata(3), official)
    damaged(official, kind)
    damaged(root / "patches.parquet", kind)

    copied = run("build", root, tmp_path / "copy")
    anew = run("build", "synthetic:3", tmp_path / "other", "--metadata", official)

    assert copied[0] == anew[0] == 1
    assert f"{root}/patches.parquet: " in copied[2]
    assert "copy it again from where the root was made" in copied[2]
    assert f"{official}: not a parquet file, or a damaged one" in anew[2]
    assert "Traceback" not in copied[2] + anew[2]


def test_a_bucket_without_credentials_is_said_at_once(run, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # as on a machine outside AWS
    monkeypatch.setenv("HOME", str(tmp_path))
    start = time.monotonic()

    code, _, err = run("build", "synthetic:3", "s3://some-bucket/root")

    assert code == 1
    assert "no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in err
    assert "169.254" not in err
    assert time.monotonic() - start < BUDGET.seconds / 2  # of which nothing was waited for


def test_an_unknown_profile_is_said(run, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "nobody")

    code, _, err = run("info", "s3://some-bucket/root")

    assert code == 1
    assert "no S3 credentials: The config profile (nobody) could not be found" in err


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["info", ""], "root"),
        (["build", "", "somewhere"], "source"),
        (["build", "synthetic:3", " "], "root"),
    ],
)
def test_an_empty_name_is_not_the_current_folder(run, arguments, name):
    code, _, err = run(*arguments)

    assert code == 2
    assert f"Invalid value for '{name}': it is an empty string; the current folder is '.'" in err


@pytest.mark.slow
def test_a_demo_of_another_size_says_that_it_is_not_made(run, tmp_path):
    assert run("demo", "--root", tmp_path, "--patches", 40)[0] == 0

    code, out, _ = run("demo", "--root", tmp_path, "--patches", 30)

    assert code == 0
    assert "is there already with 40 patches, and a root never changes: used as it is" in out
    assert f"for one of 30, remove {tmp_path} or name another folder (--root)" in out


def test_empty_and_misspelt_conditions_are_refused(run, tmp_path):
    assert run("build", "synthetic:5", tmp_path / "root")[0] == 0

    wrong = {"--bbox": "", "--datetime": "", "--country": "", "--season": "autumn", "--product": ""}
    wrong |= {"--intersects": f"@{tmp_path}", "--limit": "-1", "--sortby": "", "--cql2": ""}
    for option, text in wrong.items():
        code, out, err = run("search", tmp_path / "root", option, text)
        assert code == 2, option
        assert out == ""
        assert option.lstrip("-") in err.lower()
    assert run("bucket", "policy", "")[0] == 2
    assert run("bucket", "policy", "b", "--principal", "")[0] == 2


@pytest.mark.s3
def test_refused_credentials_are_said(run, s3_bucket, monkeypatch):
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")

    code, _, err = run("build", "synthetic:3", f"{s3_bucket.url}/root")

    assert code == 1
    assert "permission denied" in err
    assert "not-the-secret" not in err


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_build_can_go_on(tmp_path):
    """A small tmpfs where we may mount one; else a limit on the size of a file, which fails alike."""
    root = tmp_path / "small"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", root], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system here")
    build = [sys.executable, "-m", "reben_cloud.cli", "build", "synthetic:20", root / "root"]
    try:
        full = subprocess.run(build, capture_output=True, text=True, check=False, env=os.environ)
        subprocess.run(["mount", "-o", "remount,size=200m", root], check=True)
        again = subprocess.run(build, capture_output=True, text=True, check=False, env=os.environ)
        published = (root / "root" / "manifest.json").exists()
    finally:
        subprocess.run(["umount", root], check=True)

    assert full.returncode == 1
    assert "No space left on device" in full.stderr
    assert "Traceback" not in full.stderr
    assert again.returncode == 0, again.stderr
    assert published


@pytest.mark.slow
def test_verbose_shows_the_traceback(tmp_path):
    command = [sys.executable, "-m", "reben_cloud.cli", "-v", "info", tmp_path / "nothing"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "NotFoundError" in done.stderr


@pytest.mark.slow
def test_damage_is_found_by_verify(run, tmp_path):
    root = tmp_path / "root"
    assert run("build", "synthetic:12", root)[0] == 0
    shard = next((root / "shards").rglob("*-s2-*.tar"))
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    next((root / "zarr").rglob("s1/c/0/*/*/*")).unlink()

    code, out, _ = run("verify", root)

    assert code == 1
    assert shard.name in out
    assert "s1/c/0" in out
