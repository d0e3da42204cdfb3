"""Commands for layers: what they print where, with which exit code, and what they refuse."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.transform import from_origin

import reben_cloud as rc
from reben_cloud import cli
from tests import benge
from tests.batches import assert_same, samples
from tests.commands import check_command
from tests.layers.data import NUM_PATCHES
from tests.roots import synthetic_root


class Ended(NamedTuple):
    """What a command has left."""

    code: int
    stdout: str
    stderr: str


def run(*arguments, code=0, stdin=""):
    """The command as its entry point runs it, with the line that ends a failure."""
    words = [str(one) for one in arguments]
    if code != 2:
        check_command(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reben-cloud", *words])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        with (
            redirect_stdout(io.StringIO()) as out,
            redirect_stderr(io.StringIO()) as err,
            pytest.raises(SystemExit) as ended,
        ):
            cli.main()
    found = Ended(ended.value.code, out.getvalue(), err.getvalue())
    assert found.code == code, found.stderr
    return found


def refused(*arguments, code, says):
    """A command that ends with one line, or typer's usage and its line; nothing of it on stdout."""
    found = run(*arguments, code=code)
    assert found.stdout == ""
    assert "Traceback" not in found.stderr
    if code == 1:
        *bars, line = found.stderr.splitlines()
        assert all(" of " in bar for bar in bars)
        assert line.startswith("reben-cloud: ")
    assert says in " ".join(found.stderr.split())


@pytest.fixture(scope="module")
def raster(tmp_path_factory):
    """Heights from Portugal to the east of Poland."""
    path = tmp_path_factory.mktemp("raster") / "dem.tif"
    pixels = np.random.default_rng(5).integers(1, 2000, (1, 320, 300)).astype("int16")
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=320, width=300, dtype="int16", crs="EPSG:4326",
        transform=from_origin(-10, 68.5, 0.1, 0.1),
    ) as file:  # fmt: skip
        file.write(pixels)
    return path


@pytest.fixture(scope="module")
def names(ds):
    columns = {"patch_id": "id", "s1_name": "reben:s1_name", "s2v1_name": "reben:s2v1_name"}
    return ds.selection.columns(list(columns.values())).rename_columns(list(columns))


@pytest.fixture(scope="module")
def ben_ge(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benge") / "ben-ge"
    benge.write_benge(folder, names, foreign=3)
    return folder


@pytest.fixture
def options(raster, root, tmp_path):
    """Arguments of `layer raster`, which is quick."""
    return [
        "layer",
        "raster",
        raster,
        root,
        tmp_path / "dem",
        "--name",
        "dem",
        "--pixel",
        60,
        "--scratch",
        tmp_path,
    ]


# -- what they make ---------------------------------------------------------------------------------------


def test_a_raster_is_made_a_layer_and_run_again_it_is_left(options, tmp_path):
    first = run(*options, "--units", "m", "--title", "Elevation")
    again = run(*options, "--units", "m", "--title", "Elevation")
    said = json.loads(run(*options, "--units", "m", "--title", "Elevation", "--json").stdout)

    layer = rc.open_layer(tmp_path / "dem")
    there = layer.manifest.coverage
    line = (
        f"layer dem: {there} of 60 patches ({60 - there} the raster does not cover), "
        f"in file://{tmp_path}/dem\n"
    )
    assert 0 < there < NUM_PATCHES
    assert first.stdout == line
    assert again.stdout == f"already there, nothing to do: {line}"
    assert first.stderr.splitlines()[0] == "patches: 0 of 60"
    assert again.stderr == ""
    assert said == {
        "url": f"file://{tmp_path}/dem", "name": "dem", "kind": "array", "patches": there, "absent": 60 - there,
        "rows": 60,
    }  # fmt: skip
    assert layer.manifest.title == "Elevation"
    assert layer.modality.tensors[0].units == "m"


@pytest.mark.slow
def test_bars_are_on_stderr_alone(options):
    """On a terminal for stderr, stdout has the answer and no part of a bar."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "reben_cloud.cli", *map(str, options), "--json"],
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)

    assert set(json.loads(process.communicate()[0])) == {"url", "name", "kind", "patches", "absent", "rows"}
    assert process.returncode == 0
    assert b"patches" in shown
    assert b"\x1b[" in shown


def test_a_folder_is_made_a_layer(ben_ge, root, tmp_path):
    words = [
        "layer",
        "folder",
        ben_ge / "esaworldcover",
        root,
        tmp_path / "x",
        "--name",
        "cover",
        "--scratch",
        tmp_path,
    ]

    refused(*words, code=1, says="3 of its 63 files are no s2v1_name of a patch")
    found = run(*words, "--allow-missing", 3, "--key", "s2v1_name", "--suffix", "_esaworldcover")

    assert found.stdout == f"layer cover: 60 of 60 patches, in file://{tmp_path}/x\n"


def test_tables_are_made_layers(ben_ge, ds, root, tmp_path):
    texts = pd.DataFrame(
        {"patch_id": np.repeat(ds.selection.patch_ids[:20], 3), "input": "?", "number": range(60)}
    )
    texts.to_parquet(tmp_path / "texts.parquet")
    words = [
        "layer",
        "table",
        ben_ge / "ben-ge_climatezones.csv",
        root,
        tmp_path / "zones",
        "--name",
        "climate",
    ]

    refused(*words, code=1, says="3 of the 63 different names in column 'patch_id' are no s2v1_name")
    one = run(*words, "--allow-missing", 3)
    words_of_many = ["layer", "table", tmp_path / "texts.parquet", root, tmp_path / "texts", "--name", "txt"]
    many = json.loads(run(*words_of_many, "--column", "input", "--json").stdout)

    assert one.stdout == f"layer climate: 60 of 60 patches, in file://{tmp_path}/zones\n"
    assert many == {
        "url": f"file://{tmp_path}/texts", "name": "txt", "kind": "many", "patches": 20, "absent": 40, "rows": 60,
    }  # fmt: skip
    assert rc.open_layer(tmp_path / "texts").rows.names == ["patch_id", "input"]
    refused(
        "layer", "table", tmp_path / "texts.parquet", root, tmp_path / "one", "--name", "txt", "--one",
        code=1, says="20 patches have several rows",
    )  # fmt: skip
    words[4] = tmp_path / "part"
    said = run(*words[:2], tmp_path / "texts.parquet", *words[3:], "--many").stdout
    assert said == (
        f"layer climate: 20 of 60 patches (40 have no row) with 60 rows, in file://{tmp_path}/part\n"
    )


def test_a_layer_is_made_for_another_root(elevation, attached, tmp_path):
    synthetic_root(tmp_path / "less", 40, shard_samples=16)
    less = rc.open(tmp_path / "less")

    said = run(
        "layer", "rebase", elevation.url, tmp_path / "less", tmp_path / "mine", "--scratch", tmp_path
    ).stdout

    both = set(less.selection.patch_ids) & set(attached.selection.patch_ids)
    mine = samples(rc.open(tmp_path / "less", layers=[tmp_path / "mine"]).search(), modalities=["elevation"])
    theirs = samples(attached.search(), modalities=["elevation"])
    assert both
    assert_same({i: mine[i] for i in sorted(both)}, {i: theirs[i] for i in sorted(both)})
    there = sum(bool(one["elevation_present"]) for one in mine.values())
    assert said.startswith(
        f"layer elevation: {there} of 40 patches ({40 - there} the layer has nothing for), in "
    )


def test_info_says_what_a_layer_holds(elevation):
    text = run("layer", "info", elevation.url).stdout
    said = json.loads(run("layer", "info", elevation.url, "--json").stdout)

    assert text.splitlines()[0] == f"elevation: 40 of 60 patches, Elevation, in {elevation.url}"
    assert "tensor       dem: int16 120 x 120, m, pixels of 10 m, no data -9999" in text
    assert said == elevation.manifest.to_json()


# -- what they refuse -------------------------------------------------------------------------------------


def changed(options, **changes):
    words = list(options)
    for position, value in changes.items():
        words[int(position[1:])] = value
    return words


def test_arguments_that_cannot_be_are_usage(options, tmp_path):
    for extra, says in (
        (["--resampling", "bilinera"], "resampling must be one of nearest, bilinear"),
        (["--pixel", 7], "a pixel of 7 m does not divide the side of a patch, 1200 m"),
        (["--pixel", 0], "a pixel of 0 m does not divide"),
        (["--pixel", "ten"], "Invalid value for '--pixel'"),
        (["--band", "2"], "band"),
        (["--name", "A b"], "a layer cannot be named 'A b'"),
        (["--name", "s2"], "has 's2' already; give the layer another name"),
        (["--nodata", 70000], "nodata 70000 is no value of int16"),
        (["--partial"], "pixels without a value need one that says so"),
        (["--workers", 0], "workers"),
        (["--resample", "mode"], "No such option"),
    ):
        refused(*options, *extra, code=2, says=says)
    refused("layer", "rastr", code=2, says="No such command 'rastr'")
    refused(*changed(options, _4="hdfs://host/x"), code=2, says="name a path, or a URL of file, s3")
    refused(
        "layer",
        "table",
        "x.csv",
        "root",
        "dest",
        "--name",
        "x",
        "--key",
        "id",
        code=2,
        says="'id' is not one of",
    )
    assert not (tmp_path / "dem").exists()


def test_what_is_not_there_is_one_line(options, raster, root, tmp_path):
    dest = tmp_path / "dem"
    name = ["--name", "x"]

    refused(*changed(options, _3=tmp_path / "no-root"), code=1, says="no-root")
    refused(*changed(options, _2=tmp_path / "none.tif"), code=1, says="none.tif: no such raster")
    refused("layer", "folder", tmp_path / "none", root, dest, *name, code=1, says="none: no such folder")
    refused("layer", "folder", raster.parent, root, dest, *name, code=1, says="is named after a patch")
    refused("layer", "table", tmp_path / "none.csv", root, dest, *name, code=1, says="no such file")
    refused("layer", "info", tmp_path / "none", code=1, says="none")
    refused("layer", "info", root, code=1, says="layer")
    refused("layer", "rebase", tmp_path / "none", root, dest, code=1, says="none")
    refused("layer", "remove", tmp_path / "none", "--yes", code=1, says="none")
    assert not dest.exists()


def test_a_layer_that_is_there_is_not_written_over(options, root, ben_ge):
    run(*options)
    before = rc.open_layer(options[4]).manifest

    refused(*options, "--resampling", "cubic", code=1, says="has a layer already, with another provenance")
    refused(*options, "--pixel", 10, code=1, says="with another schema; a layer never changes")
    refused(*options, "--title", "x", code=1, says="with another title")
    table = [
        "layer",
        "table",
        ben_ge / "ben-ge_era-5.csv",
        root,
        options[4],
        "--name",
        "dem",
        "--allow-missing",
        3,
    ]
    refused(*table, code=1, says="has a layer already")
    refused(*changed(options, _4=root), code=1, says="is not empty")

    assert rc.open_layer(options[4]).manifest == before


def test_a_raster_of_elsewhere_publishes_nothing_and_may_be_removed(options, tmp_path):
    path = tmp_path / "andes.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=9, width=9, dtype="int16", crs="EPSG:4326",
        transform=from_origin(-70, -20, 0.1, 0.1),
    ) as file:  # fmt: skip
        file.write(np.ones((1, 9, 9), np.int16))

    refused(
        *changed(options, _2=path), code=1, says="has no values for any of the 60 patches: it lies elsewhere"
    )

    assert not (tmp_path / "dem/layer.json").exists()
    refused(*options, code=1, says="another layer was begun there")
    said = run("layer", "remove", tmp_path / "dem", "--yes").stdout
    assert said.startswith("removed ")
    run(*options)


# -- removing ---------------------------------------------------------------------------------------------


def test_a_layer_is_removed_when_that_is_confirmed(elevation, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(elevation.url.removeprefix("file://"), folder)
    (folder / "notes.txt").write_text("mine")

    for answer in ("n\n", ""):
        asked = run("layer", "remove", folder, code=1, stdin=answer)
        assert not asked.stdout.strip()  # click asks on stderr, but for the last blank
        assert f"Remove elevation: 40 of 60 patches, Elevation, in file://{folder}?" in asked.stderr
        assert "Traceback" not in asked.stderr
        assert (folder / "layer.json").exists()
    removed = run("layer", "remove", folder, stdin="y\n")

    assert removed.stdout.strip().startswith("removed ")
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["notes.txt"]
    refused(
        "layer", "remove", folder, "--yes", code=1, says="holds no layer, and nothing of an unfinished one"
    )


def test_yes_removes_without_a_question(elevation, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(elevation.url.removeprefix("file://"), folder)
    count = sum(path.is_file() for path in folder.rglob("*"))

    removed = run("layer", "remove", folder, "--yes")

    assert removed.stdout == f"removed {count} objects of {folder}\n"
    assert removed.stderr == ""
    assert not any(path.is_file() for path in folder.rglob("*"))


def test_a_root_is_never_removed(root):
    before = sorted(path for path in root.rglob("*") if path.is_file())

    refused("layer", "remove", root, "--yes", code=1, says="layer")

    assert sorted(path for path in root.rglob("*") if path.is_file()) == before
