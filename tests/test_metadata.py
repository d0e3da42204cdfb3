"""The official files in, stac-geoparquet out: refused when wrong, valid and small when right."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import stac_geoparquet.arrow
from pyproj import Transformer

from reben_cloud import grid
from reben_cloud.bigearthnet.official import OFFICIAL_SCHEMA, describe, read_official
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.catalog import patch_items
from reben_cloud.errors import SourceError
from reben_cloud.root.metadata import patch_infos, rfc3339
from reben_cloud.root.patches import patches_table
from reben_cloud.root.patches_file import write_patches
from reben_cloud.root.placement import PlacementOptions, place
from reben_cloud.sources.synthetic import synthetic_metadata
from tests.stac import stac_errors

ROWS = synthetic_metadata(200)


@pytest.fixture
def written(tmp_path):
    def write(table, name="metadata.parquet"):
        pq.write_table(table, tmp_path / name)
        return tmp_path / name

    return write


def replaced(name, values):
    column = OFFICIAL_SCHEMA.get_field_index(name)
    return ROWS.set_column(column, name, pa.array(values, OFFICIAL_SCHEMA.field(name).type))


def first_changed(name, value):
    values = ROWS.column(name).to_pylist()
    return replaced(name, [value, *values[1:]])


def turned(name):
    """A column in another order than the others."""
    values = ROWS.column(name).to_pylist()
    return replaced(name, [*values[1:], values[0]])


def of_another_day(name):
    value = ROWS.column(name)[0].as_py()
    return first_changed(name, value.replace(value[11:19], "20180101"))


def on_another_day():
    """All rows, and one of the same place on another day, with the S1 name of the first."""
    day = ROWS.column("patch_id")[0].as_py()[11:19]
    first = ROWS.slice(0, 1).to_pylist()[0]
    again = first | {name: first[name].replace(day, "20180101") for name in ("patch_id", "s2v1_name")}
    return pa.concat_tables([ROWS, pa.Table.from_pylist([again], schema=ROWS.schema)])


def test_rows_of_several_files_come_sorted_and_without_foreign_columns(written):
    a = written(ROWS.slice(100).append_column("__index_level_0__", pa.array(range(100))), "a.parquet")
    b = written(ROWS.slice(0, 100), "b.parquet")

    table = read_official([a, b])

    assert table.schema.equals(OFFICIAL_SCHEMA)
    assert table.equals(ROWS.sort_by("patch_id").cast(OFFICIAL_SCHEMA).combine_chunks())
    assert next(patch_infos(table)).patch_id == min(ROWS.column("patch_id").to_pylist())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param(ROWS.drop_columns(["country"]), "lacks country", id="column"),
        pytest.param(first_changed("labels", ["Arable lands"]), "did you mean 'Arable land'", id="label"),
        pytest.param(first_changed("split", "val"), "unknown split 'val'", id="split"),
        pytest.param(first_changed("patch_id", "S2A_x"), "S2A_x is no patch_id", id="patch id"),
        pytest.param(
            first_changed("patch_id", ROWS.column("patch_id")[0].as_py()[:-2] + "91"),
            "is no patch_id",
            id="y",
        ),
        pytest.param(first_changed("s1_name", "S1"), "S1 is no s1_name", id="s1 name"),
        pytest.param(first_changed("split", None), "split has 1 nulls", id="null"),
        pytest.param(pa.concat_tables([ROWS, ROWS.slice(3, 1)]), "comes 2 times", id="twice"),
        pytest.param(
            first_changed("s1_name", ROWS.column("s1_name")[1].as_py()),
            "has the s1_name .*, which is of another place or day, as 1 of 200 rows",
            id="pair",
        ),
        pytest.param(
            turned("s1_name"), "another place or day, as 200 of 200 rows .*join it by", id="S1 rows"
        ),
        pytest.param(turned("s2v1_name"), "has the s2v1_name .* as 200 of 200 rows", id="v1 rows"),
        pytest.param(of_another_day("s2v1_name"), "has the s2v1_name .* as 1 of 200 rows", id="v1 day"),
        pytest.param(on_another_day(), "this s1_name comes 2 times", id="S1 twice"),
        pytest.param(
            first_changed("country", "Austria "), "unknown country 'Austria '; .*'Austria'", id="space"
        ),
        pytest.param(first_changed("country", "austria"), "unknown country 'austria'", id="case"),
        pytest.param(first_changed("labels", []), "no label, as 1 of 200 rows", id="no label"),
        pytest.param(
            first_changed("labels", ["Pastures"] * 2), "a label twice, as 1 of 200", id="label twice"
        ),
        pytest.param(first_changed("labels", ["Pastures", None]), "unknown label None", id="null label"),
        pytest.param(
            ROWS.append_column("split", ROWS.column("split")), "two columns 'split'", id="column twice"
        ),
        pytest.param(
            ROWS.set_column(6, "contains_seasonal_snow", pa.array(["x"] * 200)), "not official", id="type"
        ),
    ],
)
def test_wrong_metadata_is_refused_with_the_file_and_the_cause(written, table, message):
    with pytest.raises(SourceError, match=message):
        read_official([written(table)])


def test_what_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "m.parquet").write_text("no")

    with pytest.raises(SourceError, match="not a parquet file"):
        read_official([tmp_path / "m.parquet"])
    with pytest.raises(SourceError, match="no metadata file"):
        read_official([])


def placement():
    return place(describe(ROWS), PlacementOptions(), recommended_without=REBEN.recommended_without)


@pytest.fixture(scope="module")
def placed():
    return patches_table(
        describe(ROWS),
        REBEN,
        placement(),
    )


def test_the_same_rows_give_the_same_bytes(placed):
    again = patches_table(
        describe(ROWS),
        REBEN,
        placement(),
    )

    assert write_patches(placed, REBEN) == write_patches(again, REBEN)


def test_rows_of_a_product_lie_together_in_the_order_of_its_zarr_rows(placed):
    products = placed.column("reben:product").to_pylist()

    runs = [p for p, before in zip(products, [None, *products], strict=False) if p != before]
    assert len(runs) == len(set(products))
    for product in runs:
        rows = [
            r
            for r, p in zip(placed.column("reben:zarr_row").to_pylist(), products, strict=True)
            if p == product
        ]
        assert rows == list(range(len(rows)))


def test_geopandas_reads_the_footprints_where_the_grid_has_them(placed, tmp_path):
    (tmp_path / "p.parquet").write_bytes(write_patches(placed, REBEN))

    frame = geopandas.read_parquet(tmp_path / "p.parquet")

    assert frame.crs.to_authority() == ("OGC", "CRS84")
    for row in frame.iloc[::20].itertuples():
        epsg, minx, miny, maxx, maxy = grid.footprint(row.id)
        to_lonlat = Transformer.from_crs(epsg, 4326, always_xy=True)
        want = shapely.transform(shapely.box(minx, miny, maxx, maxy), to_lonlat.transform, interleaved=False)
        assert shapely.hausdorff_distance(row.geometry, want) < 2e-7
        assert shapely.is_ccw(row.geometry.exterior)
    boxes = placed.column("bbox").to_pylist()
    want = [[box[side] for side in ("xmin", "ymin", "xmax", "ymax")] for box in boxes]
    np.testing.assert_array_equal(frame.bounds.to_numpy(), want)


def test_the_file_says_of_itself_what_the_specifications_ask(placed):
    meta = pq.read_metadata(io.BytesIO(write_patches(placed, REBEN))).metadata
    geo, stac = json.loads(meta[b"geo"]), json.loads(meta[b"stac-geoparquet"])

    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["covering"]["bbox"]["xmax"] == ["bbox", "xmax"]
    assert stac["version"] == "1.1.0"
    assert list(stac["collections"]) == ["bigearthnet-v2"]


@pytest.mark.parametrize("with_placement", [True, False])
def test_rows_are_valid_items_to_us_and_to_stac_geoparquet(placed, with_placement, shared, tmp_path):
    table = placed if with_placement else patches_table(describe(ROWS), REBEN)
    (tmp_path / "p.parquet").write_bytes(write_patches(table, REBEN))

    ours = list(patch_items(table.slice(0, 20)))
    theirs = list(
        stac_geoparquet.arrow.stac_table_to_items(pq.read_table(tmp_path / "p.parquet").slice(0, 20))
    )

    for item, other in zip(ours, theirs, strict=True):
        assert stac_errors(item, shared / "stac_schemas") == []
        assert other["id"] == item["id"]
        np.testing.assert_array_equal(other["geometry"]["coordinates"], item["geometry"]["coordinates"])
        assert other["properties"]["reben:labels"] == item["properties"]["reben:labels"]
        assert item["properties"]["datetime"] == rfc3339(grid.sensing_time(item["id"]))
        assert item["properties"]["reben:s1_datetime"] == rfc3339(
            grid.s1_sensing_time(item["properties"]["reben:s1_name"])
        )
        assert ("zarr" in item["assets"]) == with_placement


def test_another_order_of_the_placement_is_refused():
    with pytest.raises(ValueError, match="same order"):
        patches_table(describe(ROWS.take(list(range(199, -1, -1)))), REBEN, placement())


@pytest.mark.slow
def test_all_real_rows_take_little_time_memory_and_space(shared, tmp_path):
    folder = shared / "data" / "bigearthnet_pipeline"
    script = (
        "import pyarrow; pyarrow.set_cpu_count(2)\n"  # each thread has memory of its own
        "import resource, sys; from pathlib import Path; from reben_cloud.root.patches import patches_table\n"
        "from reben_cloud.root.patches_file import write_patches\n"
        "from reben_cloud.bigearthnet.official import describe, read_official\n"
        "from reben_cloud.bigearthnet.reben import REBEN\n"
        "table = patches_table(describe(read_official(sys.argv[2:])), REBEN)\n"
        "Path(sys.argv[1]).write_bytes(write_patches(table, REBEN))\n"
        # ru_maxrss would be the parent's, which vfork hands on.
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]\n"
        "used = resource.getrusage(resource.RUSAGE_SELF); print(peak, used.ru_utime + used.ru_stime)"
    )
    files = sorted(map(str, folder.glob("metadata*.parquet")))

    out = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "p.parquet", *files],
        check=True,
        capture_output=True,
        text=True,
    )

    kib, cpu_s = map(float, out.stdout.split())
    assert kib * 1024 < 1.1e9  # 0.95 GB measured; libraries differ by some 50 MB
    assert cpu_s < 60
    assert (tmp_path / "p.parquet").stat().st_size < 25e6
    assert pq.read_metadata(tmp_path / "p.parquet").num_rows == 549_488
