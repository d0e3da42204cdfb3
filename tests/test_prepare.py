"""The recipe on made scenes over real ids: what comes out equals the official rows, pixel for pixel.

The product, its squares, names, flags, countries and splits are real; the scene is made so that every
pixel tells its band, row and column, and the land cover so that labels are the real ones.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio._env import get_gdal_config
from rasterio.transform import from_origin

import reben_cloud as rc
from reben_cloud import grid
from reben_cloud.bigearthnet.bands import ARRAYS, BANDS
from reben_cloud.bigearthnet.country import load_countries
from reben_cloud.bigearthnet.labels import representative_code
from reben_cloud.build import build, dask, make_plan
from reben_cloud.checks.verify import verify
from reben_cloud.errors import ConflictError, SourceError
from reben_cloud.formats.geotiff import encode_band
from reben_cloud.scenes import prepare as prepare_module
from reben_cloud.scenes.choice import SceneChoice
from reben_cloud.scenes.class_table import load_class_table
from reben_cloud.scenes.preparation import COUNTRY_DISTANCE_M
from reben_cloud.scenes.prepare import (
    CutOptions,
    ProductReport,
    build_root,
    find_products,
    find_s1,
    prepare,
    prepare_product,
    summary,
)
from reben_cloud.scenes.product import Product
from reben_cloud.scenes.rules import Squares
from reben_cloud.scenes.safe import open_safe
from reben_cloud.scenes.sentinel1 import open_scenes
from reben_cloud.scenes.split import BlockSplit
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from tests.clusters import local_cluster
from tests.commands import invoke as command
from tests.conftest import PATIENT_S, wait_for
from tests.scenes import PRODUCT as PRODUCT_OF_SCENES
from tests.scenes import band_pixels, make_clc, make_landscape, make_safe

PRODUCT = "S2A_MSIL2A_20170704T112111_N9999_R037_T29SND"
EPSG, LEFT, TOP = grid.tile_corner("29SND")
SIZE = 3  # patches along the side of the made tile


@pytest.fixture(scope="module")
def official(shared):
    """The real rows of the product's first squares."""
    folder = shared / "data" / "bigearthnet_pipeline"
    names = ("metadata", "metadata_for_patches_with_snow_cloud_or_shadow")
    table = pa.concat_tables([pq.read_table(folder / f"{name}.parquet") for name in names])
    ids = [f"{PRODUCT}_{x:02d}_{y:02d}" for x in range(SIZE) for y in range(SIZE)]
    rows = table.filter(pa.compute.is_in(table["patch_id"], pa.array(ids))).sort_by("patch_id").to_pylist()
    assert len(rows) > 4
    return {row["patch_id"]: row for row in rows}


def place(patch_id):
    parsed = grid.parse_patch_id(patch_id)
    return parsed.y, parsed.x


def radar(y, x):
    """Decibels that tell the pixel, at row y and column x of the tile."""
    vv = -12 + (y % 97) / 100 + (x % 89) / 1000
    return np.stack([vv, vv - 7]).astype(np.float32)


def make_scenes(folder, rows):
    """A scene for each that the rows name, with data on its own patches alone."""
    folder.mkdir()
    y, x = np.indices((120 * SIZE, 120 * SIZE))
    for name in {row["s1_name"][:32] for row in rows}:
        pixels = np.full((2, 120 * SIZE, 120 * SIZE), np.nan, np.float32)
        for row in rows:
            if row["s1_name"].startswith(name):
                py, px = place(row["patch_id"])
                inside = np.s_[:, 120 * py : 120 * py + 120, 120 * px : 120 * px + 120]
                pixels[inside] = radar(y, x)[inside]
        with rasterio.open(
            folder / f"{name}_VV_VH.tif", "w", driver="GTiff", height=pixels.shape[1], width=pixels.shape[2], count=2,
            dtype="float32", crs=f"EPSG:{EPSG}", transform=from_origin(LEFT, TOP, 10, 10), nodata=np.nan,
        ) as file:  # fmt: skip
            file.write(pixels)
    return folder


def make_land(path, rows):
    """Stripes: each label of a patch takes an equal part of its columns."""
    polygons, codes = [], []
    for row in rows:
        _, minx, miny, maxx, maxy = grid.footprint(row["patch_id"])
        edges = np.round(np.linspace(0, 120, len(row["labels"]) + 1)) * 10 + minx
        for label, west, east in zip(row["labels"], edges, edges[1:], strict=False):
            polygons.append(shapely.box(west, miny, east, maxy))
            codes.append(representative_code(label))
        assert edges[-1] == maxx
    # Straight edges in UTM stay within a hundredth of a pixel in EPSG:3035 when they are this short.
    return make_clc(path, shapely.segmentize(polygons, 100), codes, epsg=EPSG)


@pytest.fixture(scope="module")
def inputs(official, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    rows = list(official.values())
    return {
        "safe": make_safe(folder, name=PRODUCT, side_m=1200 * SIZE + 600),
        "clc": make_land(folder / "clc.gpkg", rows),
        "scenes": make_scenes(folder / "S1", rows),
    }


@pytest.fixture(scope="module")
def recipe(inputs, shared):
    return CutOptions(
        land_cover=inputs["clc"],
        countries=load_countries(),
        v1=shared / "data" / "bigearthnet_pipeline",
        s1_scenes=tuple(open_scenes([inputs["scenes"]])),
    )


@pytest.fixture(scope="module")
def prepared(inputs, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "BigEarthNet"
    (report,) = prepare([inputs["safe"]], folder, recipe)
    return folder, report


def read_rows(folder):
    names = ("metadata", "metadata_for_patches_with_snow_cloud_or_shadow")
    return [row for name in names for row in pq.read_table(folder / f"{name}.parquet").to_pylist()]


@pytest.mark.slow
def test_rows_are_the_official_ones(prepared, official):
    folder, report = prepared

    assert {row["patch_id"]: row for row in read_rows(folder)} == official
    assert report.written == len(official)
    assert report.candidates == SIZE**2


def test_metadata_files_have_the_official_form(prepared, shared):
    theirs = pq.ParquetFile(shared / "data" / "bigearthnet_pipeline" / "metadata.parquet")
    ours = pq.ParquetFile(prepared[0] / "metadata.parquet")

    assert ours.schema_arrow.remove_metadata() == theirs.schema_arrow.remove_metadata()
    assert ours.metadata.format_version == theirs.metadata.format_version
    for column in range(len(ours.schema)):
        mine, real = (f.metadata.row_group(0).column(column) for f in (ours, theirs))
        assert mine.path_in_schema == real.path_in_schema
        assert mine.compression == real.compression == "ZSTD"
        by_dictionary = [any("DICTIONARY" in e for e in c.encodings) for c in (mine, real)]
        assert by_dictionary[0] == by_dictionary[1], mine.path_in_schema


def test_folders_are_laid_out_as_the_official_ones(prepared, official):
    folder, _ = prepared
    want = set()
    for row in official.values():
        i, s = row["patch_id"], row["s1_name"]
        want |= {f"BigEarthNet-S2/{PRODUCT}/{i}/{i}_{b}.tif" for b in BANDS if BANDS[b].sensor == "s2"}
        want |= {f"BigEarthNet-S1/{s[:32]}/{s}/{s}_{p}.tif" for p in ("VV", "VH")}
        want.add(f"Reference_Maps/{PRODUCT}/{i}/{i}_reference_map.tif")

    assert {str(path.relative_to(folder)) for path in folder.rglob("*.tif")} == want


def expected(patch_id):
    """Every array of a patch, from the formulas that the scene was made with."""
    y, x = place(patch_id)
    arrays = {}
    for array, bands in ARRAYS.items():
        if array == "s1":
            row, column = np.indices((120, 120))
            arrays[array] = radar(row + 120 * y, column + 120 * x)
            continue
        side = BANDS[bands[0]].size_px
        tile = (side * SIZE + 60 * side // 120,) * 2
        part = np.s_[side * y : side * (y + 1), side * x : side * (x + 1)]
        arrays[array] = np.stack([band_pixels(band, tile)[part] for band in bands])
    return arrays


@pytest.mark.slow
def test_every_pixel_from_the_scene_to_the_batch(prepared, official, tmp_path):
    """scene + land cover -> prepare -> build -> search -> stream."""
    pytest.importorskip("torch")
    from reben_cloud.torch import StreamLoader

    source, metadata = open_source(prepared[0])
    build(make_plan(source, metadata, open_store(tmp_path / "root")))
    dataset = rc.open(tmp_path / "root")
    selection = dataset.search(country="Portugal")

    seen = []
    for batch in StreamLoader(selection, modalities=("s2", "s1", "map"), batch_size=4, seed=1):
        for row, position in enumerate(batch["index"].tolist()):
            if position < 0:
                continue
            patch_id = selection.patch_ids[position]
            seen.append(patch_id)
            for array, want in expected(patch_id).items():
                np.testing.assert_array_equal(batch[array][row].numpy(), want, err_msg=f"{patch_id} {array}")
            labels = official[patch_id]["labels"]
            edges = np.round(np.linspace(0, 120, len(labels) + 1)).astype(int)
            codes = np.repeat([representative_code(label) for label in labels], np.diff(edges))
            np.testing.assert_array_equal(batch["map"][row].numpy(), np.tile(codes, (120, 1)))
            assert batch["labels"][row].sum() == len(labels)
    assert sorted(seen) == sorted(official)


def bare(inputs, **options):
    return CutOptions(land_cover=inputs["clc"], countries=load_countries(), **options)


def test_one_zero_pixel_in_any_band_rejects_the_patch(inputs, tmp_path):
    spots = {"B02": (130, 5), "B8A": (70, 65), "B09": (19, 59)}  # patches (1, 0), (1, 1), (0, 2) as (y, x)

    def pixels(name, shape):
        found = band_pixels(name, shape)
        if name in spots:
            found[spots[name]] = 0
        return found

    safe = make_safe(tmp_path, name=PRODUCT, side_m=1200 * SIZE + 600, pixels=pixels)

    (report,) = prepare([safe], tmp_path / "out", bare(inputs))

    left_out = {(1, 0), (1, 1), (0, 2)}
    assert report.nodata == 3
    kept = {row["patch_id"] for row in read_rows(tmp_path / "out")}
    assert not left_out & {place(patch_id) for patch_id in kept}
    for folder in ("BigEarthNet-S2", "Reference_Maps"):
        assert {path.name for path in (tmp_path / "out" / folder / PRODUCT).iterdir()} == kept


def test_nodata_in_the_dropped_rest_rejects_nothing(inputs, tmp_path):
    def pixels(name, shape):
        found = band_pixels(name, shape)
        found[:, shape[1] * 6 // 7 :] = 0  # the last 600 of 4,200 m
        return found

    safe = make_safe(tmp_path, name=PRODUCT, side_m=1200 * SIZE + 600, pixels=pixels)

    (report,) = prepare([safe], tmp_path / "out", bare(inputs))

    assert (report.candidates, report.nodata) == (SIZE**2, 0)


def test_a_product_that_failed_a_check_gives_no_patch(inputs, tmp_path):
    safe = make_safe(tmp_path, name=PRODUCT, side_m=1200, checks={"GEOMETRIC_QUALITY": "FAILED"})

    (report,) = prepare([safe], tmp_path / "out", bare(inputs))

    assert report.failed_checks == ("GEOMETRIC_QUALITY",)
    assert "excluded, GEOMETRIC_QUALITY not PASSED" in str(report)
    assert read_rows(tmp_path / "out") == []


@pytest.mark.slow
def test_a_killed_run_continues_and_gives_the_same_bytes(inputs, recipe, prepared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(prepared[0], out)
    (out / ".prepared" / f"{PRODUCT}.parquet").unlink()
    (out / "metadata.parquet").unlink()
    victim = sorted((out / "BigEarthNet-S2").rglob("*.tif"))[3]
    victim.write_bytes(b"half a fi")
    (victim.parent.parent / "no_such_patch").mkdir()

    prepare([inputs["safe"]], out, recipe)

    assert contents(out) == contents(prepared[0])
    assert not (victim.parent.parent / "no_such_patch").exists()


@pytest.mark.slow
def test_done_products_are_skipped_and_new_ones_added(inputs, prepared, recipe, tmp_path):
    out = shutil.copytree(prepared[0], tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.tif")}

    reports = prepare([inputs["safe"]], out, recipe)

    assert reports == [replace(prepared[1], already_there=True)]
    assert str(reports[0]).startswith(f"{PRODUCT}: already there, ")
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.tif")} == before


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def several(inputs, tmp_path_factory):
    """Three products, and what one process makes of them: reports and files."""
    folder = tmp_path_factory.mktemp("several")
    names = [PRODUCT.replace("20170704", day) for day in ("20170704", "20171121", "20180101")]
    products = [make_safe(folder, name=name, side_m=1200) for name in names]
    reports = prepare(products, folder / "out", bare(inputs))
    return products, reports, contents(folder / "out")


@pytest.mark.slow
def test_two_processes_give_what_one_gives(inputs, several, tmp_path):
    products, reports, files = several

    assert prepare(products, tmp_path, bare(inputs), workers=2) == reports
    assert contents(tmp_path) == files


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed.*")
def test_a_dask_cluster_gives_what_one_process_gives(inputs, several, tmp_path):
    products, reports, files = several
    with local_cluster(1, threads=2) as cluster:
        told = prepare(products, tmp_path, bare(inputs), executor=dask(cluster.scheduler_address))

    assert told == reports
    assert contents(tmp_path) == files


@pytest.mark.slow
def test_shares_give_together_what_one_process_gives(inputs, several, tmp_path):
    products, reports, files = several

    first = prepare(products, tmp_path, bare(inputs), worker_index=1, workers_total=2)
    assert not (tmp_path / "metadata.parquet").exists()
    second = prepare(products, tmp_path, bare(inputs), worker_index=0, workers_total=2)

    assert (len(first), len(second)) == (1, 2)
    assert sorted(first + second, key=lambda report: report.product) == reports
    assert contents(tmp_path) == files
    with pytest.raises(ValueError, match=r"worker_index must be in \[0, 2\), got 2"):
        prepare(products, tmp_path, bare(inputs), worker_index=2, workers_total=2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_says_so_and_the_same_command_goes_on(inputs, tmp_path, workers):
    names = [PRODUCT.replace("20170704", f"201707{day:02d}") for day in range(4, 12)]
    products = [make_safe(tmp_path / "s2", name=name, side_m=2400) for name in names]
    command = [
        sys.executable,
        "-m",
        "reben_cloud.cli",
        "prepare",
        "--s2",
        tmp_path / "s2",
        "--clc",
        inputs["clc"],
    ]
    command += ["--out", tmp_path / "out", "--workers", str(workers)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    receipts = tmp_path / "out" / ".prepared"
    wait_for(lambda: any(receipts.glob("*.parquet")))

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENT_S)

    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped; what is done stays done in" in err
    assert not (tmp_path / "out" / "metadata.parquet").exists()
    options = replace(bare(inputs), countries=load_countries(max_distance_m=COUNTRY_DISTANCE_M))
    prepare(products, tmp_path / "out", options)
    prepare(products, tmp_path / "whole", options)
    made = {name: data for name, data in contents(tmp_path / "out").items() if not name.endswith(".part")}
    assert made == contents(tmp_path / "whole")


def test_another_recipe_in_the_same_folder_is_refused(inputs, prepared, tmp_path):
    with pytest.raises(ConflictError, match="was begun with other inputs or options"):
        prepare([inputs["safe"]], prepared[0], bare(inputs))


@pytest.fixture(scope="module")
def made(landscape, tmp_path_factory):
    """What the landscape gives: a folder ``out`` and a root ``root``."""
    folder = tmp_path_factory.mktemp("made")
    assert run(landscape, "--out", folder / "out", "--root", folder / "root").exit_code == 0
    return folder


def copied(landscape, made, tmp_path):
    """Inputs of one's own to change, with the times of the others, and what was prepared from them."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return shutil.copytree(landscape, tmp_path / "in"), tmp_path / "out"


def write_again(path, change):
    data, time = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(change(data))
    # File systems tell times apart by a few milliseconds only.
    os.utime(path, ns=(time + 10**9, time + 10**9))


def write_back(path, change):
    """Other bytes with the size and time of the old ones."""
    stat = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


def last_flipped(data):
    """Other bytes; what is XML stays so."""
    last = len(data) - 1 if b"<?xml" not in data[:100] else data.index(b"\n")
    return data[:last] + (b" " if last < len(data) - 1 else bytes([data[last] ^ 1])) + data[last + 1 :]


def process_again(given):
    """As the ground segment does: a new generation time in the name and in the metadata, other pixels."""
    safe = next((given / "s2").glob("*.SAFE"))
    main = safe / "MTD_MSIL2A.xml"
    main.write_text(main.read_text().replace("_20240101T000000.SAFE", "_20250202T000000.SAFE"))
    write_again(next(safe.rglob("*_B04_10m.jp2")), lambda data: data)
    safe.rename(safe.with_name(safe.name.replace("_20240101T", "_20250202T")))


CHANGES = [
    pytest.param(process_again, "generation time: was 20240101T000000, is 20250202T000000", id="processed again"),
    pytest.param(
        lambda given: write_again(next(given.rglob("*_B02_10m.jp2")), bytes),
        r"Sentinel-2 T33UUP_.*_B02_10m.jp2: was [\d,]+ bytes of .*Z, xxh3 \w+, is ", id="pixels of a band",
    ),
    pytest.param(
        lambda given: write_again(next(given.rglob("S1A*.tif")), bytes), "Sentinel-1 S1A_.*_VV_VH.tif: was ", id="scene"
    ),
    pytest.param(lambda given: write_again(given / "clc.gpkg", bytes), r"land cover clc.gpkg: was ", id="land cover"),
    *(
        pytest.param(
            lambda given, pattern=pattern: write_back(next(given.rglob(pattern)), last_flipped),
            rf"{role}: was ([\d,]+ bytes of .*Z), xxh3 \w+, is \1, xxh3 ", id=f"size and time set again, {pattern}",
        )
        for pattern, role in [
            ("*_B02_10m.jp2", r"Sentinel-2 T33UUP_\w+.jp2"), ("MTD_TL.xml", r"Sentinel-2 MTD_TL.xml"),
            ("S1A*.tif", r"Sentinel-1 S1A_\w+.tif"), ("clc.gpkg", "land cover clc.gpkg"),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_product_of_other_inputs_is_refused_by_what_differs(landscape, made, tmp_path, change, message):
    given, out = copied(landscape, made, tmp_path)
    before = contents(out)
    change(given)

    failed = run(given, "--out", out)

    assert isinstance(failed.exception, ConflictError)
    assert re.search(message, str(failed.exception))
    assert "take an empty folder" in str(failed.exception)
    assert contents(out) == before


ONE_SCENE_MORE = pytest.param(
    lambda given: shutil.copy(
        next(given.rglob("S1A*.tif")), given / "s1" / "S1A_IW_GRDH_1SDV_20170614T165043_VV_VH.tif"
    ),
    r"--s1 s1/S1A_IW_GRDH_1SDV_20170614T165043_VV_VH.tif is new", id="one scene more",
)  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [*CHANGES, ONE_SCENE_MORE])
def test_a_root_of_other_inputs_is_refused_by_what_differs(landscape, made, tmp_path, change, message):
    given, root = copied(landscape, made, tmp_path)[0], tmp_path / "root"
    assert json.loads(run(given, "--root", root, "--json").stdout)["published_already"] is True
    change(given)

    failed = run(given, "--root", root)

    assert isinstance(failed.exception, ConflictError)
    assert re.search(
        "was not begun with these inputs and options: .* (was|is) .*; .*take an empty root",
        str(failed.exception),
    )


def test_the_way_out_of_other_inputs_works(landscape, made, tmp_path):
    given, out = copied(landscape, made, tmp_path)
    process_again(given)
    failed = run(given, "--out", out)
    receipt = re.search(r"delete (\S+\.parquet), or", str(failed.exception))[1]

    os.unlink(receipt)
    mended = run(given, "--out", out)

    assert mended.exit_code == 0
    assert "written now: 9 patches of 1 product; already there: 0 patches of 0 products" in mended.stdout


def test_what_an_earlier_version_recorded_is_read(landscape, made, tmp_path):
    given, out = copied(landscape, made, tmp_path)
    (receipt,) = (out / ".prepared").glob("*.parquet")
    table = pq.read_table(receipt)
    earlier = {name: re.sub(rb", xxh3 \w{16}", b"", value) for name, value in table.schema.metadata.items()}
    assert earlier != table.schema.metadata
    pq.write_table(table.replace_schema_metadata(earlier), receipt)
    claimed = tmp_path / "root" / "_build" / "prepared-from"
    claimed.write_bytes(re.sub(rb", xxh3 \w{16}", b"", claimed.read_bytes()))

    assert run(given, "--out", out).exit_code == 0
    assert json.loads(run(given, "--root", tmp_path / "root", "--json").stdout)["published_already"] is True


def test_moved_inputs_are_the_same_inputs(landscape, made, tmp_path):
    given, out = copied(landscape, made, tmp_path)

    assert run(given.rename(tmp_path / "elsewhere"), "--out", out).exit_code == 0


def test_options_that_differ_are_named(landscape, made, tmp_path):
    given, out = copied(landscape, made, tmp_path)

    failed = run(given, "--out", out, "--patch-size", "600")

    assert "begun with other inputs or options: patch size: was 1200 m, is 600 m" in str(failed.exception)


def test_a_scene_that_is_out_of_reach_changes_nothing(landscape, made, tmp_path):
    """Scenes for further products may be added."""
    given, out = copied(landscape, made, tmp_path)
    with rasterio.open(
        given / "s1" / "S1A_IW_GRDH_1SDV_20170614T165043_VV_VH.tif", "w", driver="GTiff", height=9, width=9, count=2,
        dtype="float32", crs="EPSG:32635", transform=from_origin(500_000, 7_000_000, 10, 10),
    ) as file:  # fmt: skip
        file.write(np.full((2, 9, 9), -9, np.float32))

    assert "already there: 9 patches of 1 product;" in run(given, "--out", out).stdout


def test_products_and_scenes_are_added_to_a_destination(landscape, made, tmp_path, caplog):
    """A further product with a further scene, which reaches the first product too: that stays what it was."""
    given, out = copied(landscape, made, tmp_path)
    before = contents(out / "BigEarthNet-S1") | contents(out / "BigEarthNet-S2")
    other = PRODUCT_OF_SCENES.replace("20170613", "20170623")
    make_safe(given / "s2", name=other, side_m=1200)
    later = given / "s1" / "S1A_IW_GRDH_1SDV_20170623T165043_VV_VH.tif"
    shutil.copy(next(given.rglob("S1A*.tif")), later)

    done = run(given, "--out", out)

    assert done.exit_code == 0
    assert "written now: 1 patch of 1 product; already there: 9 patches of 1 product" in done.stdout
    rows = {row["patch_id"]: row["s1_name"] for row in read_rows(out)}
    assert {name[:32] for patch_id, name in rows.items() if "20170613" in patch_id[:26]} == {
        "S1A_IW_GRDH_1SDV_20170613T165043"
    }
    assert rows[f"{other}_00_00"].startswith("S1A_IW_GRDH_1SDV_20170623T165043")
    assert before.items() <= (contents(out / "BigEarthNet-S1") | contents(out / "BigEarthNet-S2")).items()
    assert f"{PRODUCT_OF_SCENES}: was made before {later.name} came, which reaches it too" in caplog.text
    # A scene that it was made from must be what it was, and be there.
    next(given.rglob("S1A*20170613*.tif")).unlink()
    failed = run(given, "--out", out)
    assert "Sentinel-1 S1A_IW_GRDH_1SDV_20170613T165043_VV_VH.tif is gone" in str(failed.exception)


def test_written_and_already_there_are_told_apart(landscape, made, tmp_path):
    given, out = copied(landscape, made, tmp_path)
    other = PRODUCT_OF_SCENES.replace("20170613", "20170623")
    make_safe(given / "s2", name=other, side_m=1200)

    text = run(given, "--out", out)
    machine = json.loads(run(given, "--out", out, "--json").stdout)

    assert text.stdout.splitlines()[-1] == (
        "written now: 1 patch of 1 product; already there: 9 patches of 1 product; products excluded: 0"
    )
    assert f"{PRODUCT_OF_SCENES}: already there, 9 of 9 squares; left out" in text.stdout
    assert f"{other}: 1 of 1 squares written; left out" in text.stdout
    assert [(p["product"], p["written"], p["already_there"]) for p in machine["products"]] == [
        (PRODUCT_OF_SCENES, 9, True), (other, 1, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("patches", "said"),
    [
        pytest.param([], "0 patches of 0 products", id="none"),
        pytest.param([1], "1 patch of 1 product", id="one"),
        pytest.param([0], "0 patches of 1 product", id="one without patches"),
        pytest.param([1, 0], "1 patch of 2 products", id="two"),
        pytest.param([1000, 500], "1,500 patches of 2 products", id="many"),
    ],
)
def test_the_summary_counts_in_singular_and_plural(patches, said):
    now = [ProductReport(product=f"p{i}", written=written) for i, written in enumerate(patches)]
    before = [replace(report, already_there=True) for report in now]

    assert summary(now).startswith(f"written now: {said}; already there: 0 patches of 0 products; ")
    assert f"; already there: {said}; " in summary(before)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_square_is_kept_or_left_out_for_one_cause(seed):
    rng = np.random.default_rng(seed)
    masks = {name: rng.random((7, 5)) < 0.7 for name in ("inside", "filled", "in_v1", "labelled", "with_s1")}

    report = ProductReport.of("p", Squares(**masks))

    causes = report.outside + report.nodata + report.not_in_v1 + report.unlabelled + report.without_s1
    assert causes + report.written == report.candidates == 35
    assert report.written == np.all(list(masks.values()), axis=0).sum()


@pytest.mark.slow
def test_what_systems_leave_beside_the_receipts_is_passed_over(inputs, prepared, recipe, tmp_path):
    out = shutil.copytree(prepared[0], tmp_path / "out")
    (out / ".prepared" / f"._{PRODUCT}.parquet").write_bytes(b"Mac OS X")

    (report,) = prepare([inputs["safe"]], out, recipe)

    assert report.already_there
    assert {row["patch_id"]: row for row in read_rows(out)} == {
        row["patch_id"]: row for row in read_rows(prepared[0])
    }


def test_nothing_half_written_stays_behind(prepared):
    assert not [path for path in prepared[0].rglob("*") if path.suffix == ".part"]


def test_inputs_that_change_while_they_are_prepared_are_refused(inputs, tmp_path, monkeypatch):
    safe = shutil.copytree(inputs["safe"], tmp_path / inputs["safe"].name)

    original = prepare_module.cut_product

    def cut(*arguments):
        done = original(*arguments)
        write_again(next(safe.rglob("*_B8A_20m.jp2")), lambda data: data)
        return done

    monkeypatch.setattr(prepare_module, "cut_product", cut)

    with pytest.raises(
        SourceError, match=r"its inputs changed while it was prepared: Sentinel-2 .*B8A_20m.jp2"
    ):
        prepare_product(open_safe(safe), tmp_path / "out", bare(inputs))
    assert not list(tmp_path.glob("out/.prepared/*.parquet"))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        pytest.param(lambda p, t: pq.write_table(t.replace_schema_metadata({}), p), ConflictError,
                     "does not say what the product was made from, an earlier version wrote it", id="earlier version"),
        pytest.param(lambda p, t: p.write_bytes(b"half"), SourceError, "damaged .*delete it, and", id="damaged"),
    ],
)  # fmt: skip
def test_a_receipt_that_says_nothing_is_refused(inputs, prepared, recipe, tmp_path, spoil, error, message):
    out = shutil.copytree(prepared[0], tmp_path / "out")
    receipt = out / ".prepared" / f"{PRODUCT}.parquet"
    spoil(receipt, pq.read_table(receipt))

    with pytest.raises(error, match=message):
        prepare([inputs["safe"]], out, recipe)


def test_other_patch_sizes_and_classes_for_a_new_region(tmp_path):
    """600 m patches of a square outside the dataset, with five classes; S2 alone."""
    product = "S2C_MSIL2A_20250601T100601_N0511_R022_T32TPT"
    epsg, left, top = grid.tile_corner("32TPT")
    safe = make_safe(tmp_path, name=product, side_m=1260, offset=-1000)
    clc = make_clc(tmp_path / "clc.gpkg", [shapely.box(left, top - 1260, left + 600, top)], [312], epsg=epsg)
    recipe = CutOptions(
        land_cover=clc, table=load_class_table("clc_level1"), countries=load_countries(), patch_m=600
    )

    (report,) = prepare([safe], tmp_path / "out", recipe)

    rows = read_rows(tmp_path / "out")
    assert report.written == 2
    assert [row["patch_id"] for row in rows] == [f"{product}_000_000", f"{product}_000_001"]
    assert {(row["labels"][0], row["split"]) for row in rows} == {("Forest and semi-natural areas", "train")}
    assert not {"s1_name", "s2v1_name"} & rows[0].keys()
    path = tmp_path / "out" / "BigEarthNet-S2" / product / f"{product}_000_001" / f"{product}_000_001_B05.tif"
    with rasterio.open(path) as file:
        raw = band_pixels("B05", (63, 63))[30:60, :30].astype(int) - 1000
        assert np.array_equal(file.read(1), np.clip(raw, 1, None))
        assert (file.transform.c, file.transform.f) == (left, top - 600)


def encode_patch(patch_id, pixels):
    epsg, minx, _, _, maxy = grid.footprint(patch_id)
    return encode_band(pixels, epsg=epsg, left=minx, top=maxy, pixel_m=10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vv", "vh", "moved", "message"),
    [
        pytest.param(-19.0, -12.0, False, r"VV is not above VH \(medians -19.0 and -12.0 dB\)", id="swapped"),
        pytest.param(-12.0, np.nan, False, r"VH.tif: holds values that are not numbers", id="not finite"),
        pytest.param(-12.0, -19.0, True, "its upper left corner is", id="of another place"),
        pytest.param(0.08, 0.016, False, "above 0 dB, which no land returns; it is linear power", id="power"),
        pytest.param(-1200.0, -1900.0, False, r"outside \[-60, 30\] dB", id="other scale"),
    ],
)
def test_official_s1_patches_that_make_no_sense_are_refused(
    inputs, shared, official, tmp_path, vv, vh, moved, message
):
    for patch_id, row in official.items():
        folder = tmp_path / "S1-v1" / row["s1_name"]
        folder.mkdir(parents=True)
        place_id = next(iter(official)) if moved else patch_id
        for polarization, level in (("VV", vv), ("VH", vh)):
            data = encode_patch(place_id, np.full((120, 120), level, np.float32))
            (folder / f"{row['s1_name']}_{polarization}.tif").write_bytes(data)
    options = {"v1": shared / "data" / "bigearthnet_pipeline", "s1_v1": tmp_path / "S1-v1"}

    with pytest.raises(SourceError, match=message):
        prepare([inputs["safe"]], tmp_path / "out", bare(inputs, **options))
    assert not (tmp_path / "out" / "metadata.parquet").exists()


@pytest.mark.slow
def test_official_s1_patches_are_copied_as_they_are(inputs, shared, official, tmp_path):
    root = tmp_path / "S1-v1"
    official_tiffs = {}
    for row in official.values():
        name = row["s1_name"]
        (root / name).mkdir(parents=True)
        for polarization in ("VV", "VH"):
            level = -12 if polarization == "VV" else -19
            pixels = np.full((120, 120), level + len(official_tiffs) / 100, np.float32)
            official_tiffs[name, polarization] = data = encode_patch(row["patch_id"], pixels)
            (root / name / f"{name}_{polarization}.tif").write_bytes(data)
    v1_root, scenes = find_s1([root], [inputs["safe"]], tmp_path)

    prepare(
        [inputs["safe"]], tmp_path / "out",
        bare(inputs, v1=shared / "data" / "bigearthnet_pipeline", s1_v1=v1_root, s1_scenes=scenes),
    )  # fmt: skip

    assert [row["s1_name"] for row in read_rows(tmp_path / "out")] == [
        r["s1_name"] for r in official.values()
    ]
    for (name, polarization), data in official_tiffs.items():
        path = tmp_path / "out" / "BigEarthNet-S1" / name[:32] / name / f"{name}_{polarization}.tif"
        assert path.read_bytes() == data


def test_patches_that_no_scene_covers_are_left_out(inputs, official, recipe, tmp_path):
    some = list(official.values())[:2]
    scenes = tuple(open_scenes([make_scenes(tmp_path / "S1", some)]))

    (report,) = prepare([inputs["safe"]], tmp_path / "out", bare(inputs, s1_scenes=scenes))

    assert [row["patch_id"] for row in read_rows(tmp_path / "out")] == [row["patch_id"] for row in some]
    assert report.without_s1 == len(official) - 2
    assert len(list((tmp_path / "out" / "BigEarthNet-S2").rglob("*.tif"))) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"patch_m": 1000}, r"patch_m \(--patch-size\) must be a multiple of 60 m", id="patch size"
        ),
        pytest.param({"s1_v1": "x"}, "paired by v1's lists: give their folder too", id="S1 without v1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        bare(inputs, **options)


def other_rules(inputs, tmp_path, name):
    """Options that are the paper's but for one rule."""
    countries = load_countries()
    austria = countries.polygons["Austria"]
    if name == "raster":
        (tmp_path / "cover.tif").touch()
    if name == "classes":
        table = load_class_table("reben19")
        return {"table": replace(table, classes=replace(table.classes, min_share=0.01))}
    return {
        "any country": lambda: {"countries": load_countries(names=None)},
        "finer map": lambda: {
            "countries": replace(countries, polygons=countries.polygons | {"Austria": austria.buffer(0.1)})
        },
        "limit of distance": lambda: {"countries": replace(countries, max_distance_m=50_000.0)},
        "column": lambda: {"code_column": "code_12"},
        "raster": lambda: {"land_cover": tmp_path / "cover.tif"},
        "choice of scenes": lambda: {"s1_choice": SceneChoice(max_gap_days=1)},
        "split": lambda: {"split": BlockSplit(side_m=4800)},
        "bands": lambda: {"bands": ("B02", "B03")},
        "patch size": lambda: {"patch_m": 600},
        "name": lambda: {"name": "Mine"},
        "without v1": lambda: {"v1": None},
    }[name]()


@pytest.mark.parametrize(
    "name",
    [
        "any country", "finer map", "limit of distance", "column", "raster", "classes", "choice of scenes", "split",
        "bands", "patch size", "name", "without v1",
    ],
)  # fmt: skip
def test_of_any_other_rule_than_the_papers_a_dataset_is_ones_own(inputs, recipe, tmp_path, name):
    changed = replace(recipe, **other_rules(inputs, tmp_path, name))

    assert recipe.is_official
    assert not changed.is_official
    assert changed.schema.name == ("Mine" if name == "name" else "Own BigEarthNet")


def test_any_country_with_the_v1_lists_makes_a_root_of_ones_own(inputs, shared, tmp_path):
    arguments = [
        "--s2", inputs["safe"], "--clc", inputs["clc"], "--s1", inputs["scenes"], "--any-country",
        "--v1", shared / "data" / "bigearthnet_pipeline", "--root", tmp_path / "root",
    ]  # fmt: skip
    done = command("prepare", *arguments)
    assert done.exit_code == 0, done.exception

    ds = rc.open(tmp_path / "root")
    assert ds.schema.name == "Own BigEarthNet"
    # What v1 says of its squares is kept.
    assert all(ds.selection.columns(["reben:s2v1_name"])["reben:s2v1_name"].to_pylist())


def test_missing_inputs_are_named(inputs, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such land-cover file"):
        CutOptions(land_cover=tmp_path / "none.gpkg", countries=load_countries())
    with pytest.raises(FileNotFoundError, match=r"no \.SAFE product there"):
        find_products([tmp_path])
    with pytest.raises(SourceError, match="given twice"):
        prepare([inputs["safe"], inputs["safe"]], tmp_path / "out", bare(inputs))


@pytest.mark.slow
def test_the_command_does_it_all(inputs, official, shared, tmp_path, prepared):
    from typer.testing import CliRunner

    from reben_cloud.cli import app

    arguments = [
        "prepare", "--s2", inputs["safe"], "--clc", inputs["clc"], "--s1", inputs["scenes"],
        "--v1", shared / "data" / "bigearthnet_pipeline", "--out", tmp_path / "out",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)

    assert result.exit_code == 0
    assert f"{PRODUCT}: {len(official)} of {SIZE**2} squares written" in result.stdout
    assert read_rows(tmp_path / "out") == read_rows(prepared[0])


@pytest.fixture(scope="module")
def landscape(tmp_path_factory):
    return make_landscape(tmp_path_factory.mktemp("landscape"), patches=3)


def run(landscape, *arguments):
    from typer.testing import CliRunner

    from reben_cloud.cli import app

    given = ["--s2", landscape / "s2", "--s1", landscape / "s1", "--clc", landscape / "clc.gpkg", *arguments]
    return CliRunner().invoke(app, ["prepare", *map(str, given)])


@pytest.mark.slow
def test_one_command_goes_from_scenes_to_a_root(landscape, tmp_path):
    """The same root as by way of folders, and what was on the way to it is removed."""
    result = run(landscape, "--root", tmp_path / "root", "--workers", "2")
    by_way = run(landscape, "--out", tmp_path / "out")
    source, metadata = open_source(tmp_path / "out")
    build(make_plan(source, metadata, open_store(tmp_path / "two")))

    def objects(root):
        return {name: data for name, data in contents(root).items() if not name.startswith("_build/")}

    assert (result.exit_code, by_way.exit_code) == (0, 0)
    assert (
        result.stdout.splitlines()[-1]
        == f"published 9 patches at {open_store(tmp_path / 'root').url}: s2 9, s1 9, map 9"
    )
    assert objects(tmp_path / "root") == objects(tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "root", "two"]
    report = verify(rc.open(tmp_path / "root"))
    assert report.ok
    again = run(landscape, "--root", tmp_path / "root")
    assert again.stdout.startswith("published already: 9 patches")
    with pytest.raises(ConflictError, match="not empty, and was not begun with these inputs and options"):
        raise run(landscape, "--root", tmp_path / "root", "--patch-size", "600").exception
    with pytest.raises(ConflictError, match="not empty"):
        raise run(landscape, "--root", tmp_path / "two").exception


@pytest.mark.slow
def test_a_failed_way_to_a_root_continues_once_the_cause_is_mended(landscape, tmp_path):
    scenes = shutil.copytree(landscape, tmp_path / "in")
    image = next(scenes.rglob("*_B8A_20m.jp2"))
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])

    failed = run(scenes, "--root", tmp_path / "root", "--out", tmp_path / "out")
    image.write_bytes(whole)
    mended = run(scenes, "--root", tmp_path / "root", "--out", tmp_path / "out")

    assert isinstance(failed.exception, SourceError)
    assert mended.exit_code == 0
    assert len(rc.open(tmp_path / "root")) == 9
    assert len(list((tmp_path / "out" / "Reference_Maps").rglob("*.tif"))) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "say where to: --out FOLDER, --root ROOT, or both", id="no place"),
        pytest.param(["--root", "r", "--worker-index", "0"], "--worker-index goes with --out", id="share"),
    ],
)
def test_wrong_use_of_the_command_is_explained(landscape, arguments, message):
    result = run(landscape, *arguments)

    assert result.exit_code == 2
    assert message in result.stderr


def test_a_root_of_no_patch_is_refused(inputs, tmp_path):
    prepare(
        [make_safe(tmp_path, name=PRODUCT, side_m=1200, checks={"SENSOR_QUALITY": "FAILED"})],
        tmp_path / "out",
        bare(inputs),
    )

    with pytest.raises(SourceError, match="no patch was kept, so there is no root to build"):
        build_root(tmp_path / "out", open_store(tmp_path / "root"))


@pytest.mark.slow
def test_a_new_region_of_sentinel_2_alone_goes_all_the_way(tmp_path):
    """A square, a satellite and a country that the dataset has not, without Sentinel-1: to a root and out of it."""
    product = "S2C_MSIL2A_20250601T100601_N0511_R022_T32TPT"
    epsg, left, top = grid.tile_corner("32TPT")
    safe = make_safe(tmp_path, name=product, side_m=2400)
    clc = make_clc(tmp_path / "clc.gpkg", [shapely.box(left, top - 2400, left + 2400, top)], [312], epsg=epsg)
    ring = [[5, 40], [15, 40], [15, 50], [5, 50], [5, 40]]
    countries = tmp_path / "c.geojson"
    feature = {
        "properties": {"NAME_LONG": "Elsewhere"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    countries.write_text(json.dumps({"features": [feature]}))
    recipe = CutOptions(land_cover=clc, countries=load_countries(countries, names=None))

    prepare([safe], tmp_path / "out", recipe)
    source, metadata = open_source(tmp_path / "out")
    build(make_plan(source, metadata, open_store(tmp_path / "root")))
    dataset = rc.open(tmp_path / "root")
    found = dataset.search(country="Elsewhere", labels=["Coniferous forest"])

    assert sorted(found.patch_ids) == [f"{product}_{x:02d}_{y:02d}" for x in (0, 1) for y in (0, 1)]
    assert dataset.manifest["modalities"] == ["s2", "map"]
    stack = dataset.open_zarr(product)
    for row, patch_id in enumerate(stack.patch_id.values.tolist()):
        y, x = place(patch_id)
        want = band_pixels("B09", (40, 40))[20 * y : 20 * y + 20, 20 * x : 20 * x + 20]
        np.testing.assert_array_equal(stack.s2_60m.values[row, 1], want)


class InMemory:
    """A product of another form, as somebody else would write it: it has what `Product` asks, and no file."""

    def __init__(self, path):
        safe = open_safe(path)
        for name in (
            "name",
            "square",
            "time",
            "datastrip",
            "epsg",
            "left",
            "top",
            "bounds",
            "shapes",
            "failed_checks",
        ):
            setattr(self, name, getattr(safe, name))
        self.where, self.is_checked = "memory://one", True
        self.bands = {name: safe.read_band(name) for name in BANDS if BANDS[name].sensor == "s2"}

    def inputs(self, *, masks):
        return {"etag": f"abc, masks {masks}"}

    def read_band(self, name, *, within=None):
        return self.bands[name].copy()

    def read_mask(self, name, *, within=None):
        return None


class Watched(InMemory):
    """Keeps what GDAL may cache while a band is read."""

    def __init__(self, path):
        super().__init__(path)
        self.cached = []

    def read_band(self, name, *, within=None):
        self.cached.append(get_gdal_config("GDAL_CACHEMAX"))
        return super().read_band(name)


def test_gdal_caches_little_while_a_product_is_cut_and_as_before_after_it(inputs, tmp_path):
    """By itself it takes a twentieth of the machine's memory."""
    product, before = Watched(inputs["safe"]), get_gdal_config("GDAL_CACHEMAX")

    prepare([product], tmp_path / "out", bare(inputs))

    assert product.cached == [2**28] * 12
    assert get_gdal_config("GDAL_CACHEMAX") == before != 2**28


def test_a_product_of_another_form_gives_the_same(inputs, recipe, prepared, tmp_path):
    product = InMemory(inputs["safe"])

    (report,) = prepare([product], tmp_path / "out", recipe)
    (again,) = prepare([product], tmp_path / "out", recipe)

    assert isinstance(product, Product)
    assert report == prepared[1]
    assert again.already_there
    ours, theirs = (
        {name: data for name, data in contents(folder).items() if not name.startswith(".prepared")}
        for folder in (tmp_path / "out", prepared[0])
    )
    assert ours == theirs
    with pytest.raises(SourceError, match=rf"given twice, memory://one and {inputs['safe'].name}"):
        prepare([product, inputs["safe"]], tmp_path / "other", recipe)
