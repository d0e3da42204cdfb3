"""Layers that are damaged, foreign or killed in the making: right values, or an error that says what is wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.transform import from_origin

import reben_cloud as rc
from reben_cloud.checks.verify import verify_layer
from reben_cloud.errors import RebenError
from reben_cloud.layers import publish
from reben_cloud.root import layout
from reben_cloud.root.digest import sealed
from reben_cloud.stream import RawLoader
from tests.batches import samples
from tests.layers.data import write_table_layer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PLACES = int(os.environ.get("REBEN_FLIPS", "40"))
"""Flipped bits for each object of a layer, beside those at its ends."""


@pytest.fixture(params=["array", "one", "many"])
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, elevation, ds, tmp_path):
    """A layer of each kind that may be damaged, without what its making left."""
    path = tmp_path / kind
    if kind == "array":
        shutil.copytree(elevation.url.removeprefix("file://"), path, ignore=shutil.ignore_patterns("_build"))
    else:
        write_table_layer(path, ds, kind=kind)
    return path


def used(root, folder, kind):
    """What people get of a layer: its values for patches."""
    ds = rc.open(root, layers=[str(folder)])
    if kind == "array":
        ds.search(has=["elevation"])
        found = samples(ds.search(), modalities=["elevation"])
        return {
            patch_id: (bool(one["elevation_present"]), one["elevation"].tobytes())
            for patch_id, one in found.items()
        }
    if kind == "one":
        there = ds.search(has=["climate"])
        warm = ds.search(cql2='"climate:temperature" > 5').patch_ids
        return there.patch_ids, there.columns(["climate:temperature"]).column(0).to_pylist(), warm
    ds.search(has=["txt"])
    drawn = ds.search(cql2="\"txt:input\" LIKE '%1 of%'").with_rows("txt", rule="one", columns=["input"])
    texts = [
        str(text)
        for batch in RawLoader(drawn, batch_size=8, modalities=["map"])
        for text in batch["txt:input"]
    ]
    return sorted(texts)


def test_no_flip_in_any_object_of_a_layer_gets_through(root, ds, folder, kind):
    """By use, either the right values come or an error; `verify` finds every one."""
    rng = np.random.default_rng(PLACES)
    layer, right = rc.open_layer(folder), used(root, folder, kind)
    told, harmless = list[tuple[str, int, str]](), 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, data = path.relative_to(folder).as_posix(), path.read_bytes()
        for place in sorted(
            {0, 1, len(data) // 2, len(data) - 1, *rng.integers(len(data), size=PLACES).tolist()}
        ):
            changed = bytearray(data)
            changed[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)

            problems = verify_layer(layer).problems
            try:
                assert used(root, folder, kind) == right, (name, place)
                harmless += 1
            except RebenError as error:
                told.append((name, place, str(error)))

            assert any(name in problem for problem in problems), (name, place, problems)
        path.write_bytes(data)
    assert len(told) > harmless / 10
    assert [one for one in told if folder.name not in one[2]] == []
    assert used(root, folder, kind) == right


def mutants(table):
    """Ways in which a table can be another than it must be: (what was done, table)."""
    count = table.num_rows
    wrong = {
        pa.string(): "x", pa.int64(): 3, pa.float64(): 1.5, pa.binary(): b"x", pa.list_(pa.int32()): [1],
        pa.struct([("a", pa.int8())]): {"a": 1}, pa.bool_(): True,
    }  # fmt: skip
    for number, name in enumerate(table.column_names):
        kind, values = table.schema.field(name).type, table.column(name).to_pylist()

        def put(values, kind=kind, number=number, name=name):
            return table.set_column(number, name, pa.array(values, kind))

        yield f"no {name}", table.drop_columns([name])
        yield f"{name} twice", table.append_column(name, table.column(name))
        for other, value in wrong.items():
            if other != kind and name in ("patch_id", *(set(table.column_names) - {"temperature", "input"})):
                yield f"{name} is {other}", put([value] * count, other)
        yield f"no {name} anywhere", put([None] * count)
        yield f"one {name} is null", put([None, *values[1:]])
        yield f"{name} reversed", put(values[::-1])
        if pa.types.is_int64(kind):
            yield from (
                (f"{name} {value}", put([value, *values[1:]])) for value in (-1, 10**6, 2**62, 2**63 - 1)
            )
    yield "no rows", table.slice(0, 0)
    yield "a row less", table.slice(0, count - 1)
    yield "rows reversed", table.take(list(range(count))[::-1])
    yield "rows twice", pa.concat_tables([table, table])


def seal_again(folder, path, table):
    """Put a table in a layer as if it had always been there."""
    document = json.loads((folder / "layer.json").read_text())
    del document["digest"]
    data, seal = publish.encode_table([table], table.schema, row_group_rows=20)
    (folder / path).write_bytes(data)
    document["rows_parquet" if path == layout.ROWS else "index_parquet"] = seal.to_json()
    if path == layout.ROWS:
        document["num_rows"] = table.num_rows
    if path == layout.INDEX or document["kind"] == "one":
        document["coverage"] = min(table.num_rows, document["num_patches"])
    (folder / "layer.json").write_bytes(json.dumps(sealed(document)).encode())


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("path", [layout.ROWS, layout.INDEX])
def test_foreign_tables_are_used_as_they_are_or_refused_in_words(root, ds, folder, kind, path):
    if not (folder / path).exists():
        return  # of several rows per patch alone
    table, keep = pq.read_table(folder / path), shutil.copytree(folder, folder.with_name("keep"))
    seen, said = set[str](), dict[str, str]()
    for what, mutant in mutants(table):
        shutil.rmtree(folder)
        shutil.copytree(keep, folder)
        seal_again(folder, path, mutant)
        try:
            sound = verify_layer(rc.open_layer(folder), root=ds, deep=True).ok
            used(root, folder, kind)
            seen.add("sound" if sound else "verify")
        except RebenError as error:
            seen.add("refused")
            said[what] = str(error)
        except ValueError as error:  # the filter of `used`, of a column that is not there
            said[what] = str(error)
    known = (
        folder.name, "the filter names the property", "patches.parquet places", "has a row in the layer",
    )  # fmt: skip
    assert {what: text for what, text in said.items() if not any(one in text for one in known)} == {}
    assert "refused" in seen


def test_whatever_a_layer_says_of_itself_it_is_read_or_refused_in_words(root, ds, folder, kind):
    text = (folder / "layer.json").read_text()
    document = json.loads(text)
    del document["digest"]
    refused = 0
    for key in document:
        for value in (None, "", "x", -1, 0, 1, 2**70, 1.5, True, [], [1], {}, {"a": 1}, {"a": {"b": "c"}}):
            (folder / "layer.json").write_bytes(json.dumps(sealed({**document, key: value})).encode())
            try:
                layer = rc.open_layer(folder)
                layer.describe()
                verify_layer(layer, root=ds)
                used(root, folder, kind)
            except RebenError:
                refused += 1
            except ValueError:
                assert key == "name"  # by which `used` asks for it
    assert refused > 100


# -- kills -------------------------------------------------------------------------------------------


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "_build" not in path.parts
    }


@pytest.fixture
def sources(ds, tmp_path):
    """What layers are made of: a raster, and a table with several rows per patch in no order."""
    pixels = np.random.default_rng(5).integers(1, 2000, (1, 320, 400)).astype("int16")
    with rasterio.open(
        tmp_path / "dem.tif", "w", driver="GTiff", count=1, height=320, width=400, dtype="int16", crs="EPSG:4326",
        transform=from_origin(-10, 68.5, 0.1, 0.1),
    ) as file:  # fmt: skip
        file.write(pixels)
    ids = list(np.random.default_rng(6).permutation(np.repeat(ds.selection.patch_ids, 50)))
    table = pa.table({"patch_id": ids, "input": [f"text {n} of {i}" for n, i in enumerate(ids)]})
    pq.write_table(table, tmp_path / "texts.parquet", row_group_size=100)
    return tmp_path


@pytest.mark.parametrize("what", ["raster", "table"])
def test_ten_kills_of_a_command_leave_no_trace(root, sources, what):
    """At drawn moments between its first sign at the destination and its end."""
    scratch = sources / "scratch"
    words = {
        "raster": [
            "raster",
            sources / "dem.tif",
            root,
            "DEST",
            "--name",
            "dem",
            "--pixel",
            "10",
            "--scratch",
            scratch,
        ],
        "table": ["table", sources / "texts.parquet", root, "DEST", "--name", "txt", "--many"],
    }[what]
    dest, draw = sources / "layer", random.Random(7)

    def start(dest):
        arguments = ["layer", *(str(dest) if word == "DEST" else str(word) for word in words)]
        run = subprocess.Popen(
            [sys.executable, "-m", "reben_cloud.cli", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        while not dest.exists() and run.poll() is None:
            time.sleep(0.002)
        return run

    whole, begun = start(sources / "whole"), time.monotonic()
    assert whole.wait() == 0, whole.stdout.read()
    lasts = time.monotonic() - begun
    killed = 0
    for _ in range(10):
        run = start(dest)
        time.sleep(draw.uniform(0, lasts) if not dest.exists() or killed else 0)
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            killed += 1
        run.wait()
        run.stdout.close()
        if not killed and (dest / "layer.json").exists():
            shutil.rmtree(dest)  # it was quicker than we: once more
        elif not (dest / "layer.json").exists():
            with pytest.raises(rc.NotFoundError, match="no layer is published"):
                rc.open_layer(dest)

    last = start(dest)
    assert last.wait() == 0, last.stdout.read()
    assert killed >= 1
    assert tree(dest) == tree(sources / "whole")
    assert not scratch.exists() or not any(scratch.iterdir())
    assert verify_layer(rc.open_layer(dest), root=rc.open(root), deep=True).ok
