"""Two products of one tile and acquisition, a datastrip each, make the patches that the whole product would make."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from reben_cloud import grid
from reben_cloud.bigearthnet.country import load_countries
from reben_cloud.errors import ConflictError, SourceError
from reben_cloud.scenes.datastrips import MergedProduct, merge_datastrips
from reben_cloud.scenes.inputs import identify_inputs
from reben_cloud.scenes.prepare import CutOptions, prepare
from reben_cloud.scenes.processors import run_sen2cor
from reben_cloud.scenes.receipts import receipt_path
from reben_cloud.scenes.safe import open_safe
from tests.commands import invoke as command
from tests.items import serve_api
from tests.scenes import PRODUCT, band_pixels, make_clc, make_safe

SIDE_M = 3600
FIRST, SECOND = "20170613T101608", "20170613T101622"
CUT_M, OVERLAP_M = 1740, 120
"""Where the first datastrip ends and the second begins, metres from the north: within the second row of patches."""


def strip(generation, datastrip, keep, folder, **options):
    """A product with the pixels of the rows that `keep` says, by their metres from the north."""

    def pixels(name, shape):
        pixel_m = SIDE_M // shape[0]
        rows = keep(np.arange(shape[0]) * pixel_m)[:, None]
        # The second datastrip is brighter, so that a pixel tells from which it is.
        return np.where(rows, band_pixels(name, shape) + (100 if datastrip == SECOND else 0), 0).astype(
            np.uint16
        )

    rows = keep(np.arange(SIDE_M // 20) * 20)[:, None]
    scl = np.where(rows, 9 if datastrip == SECOND else 4, 0) * np.ones((1, SIDE_M // 20))
    cld = np.where(rows, 80 if datastrip == SECOND else 10, 0) * np.ones((1, SIDE_M // 20))
    options = {"scl": scl, "cld": cld} | options
    return make_safe(
        folder, side_m=SIDE_M, pixels=pixels, datastrip=datastrip, generation=generation, **options
    )


def north(metres):
    return metres < CUT_M


def south(metres):
    return metres >= CUT_M - OVERLAP_M


@pytest.fixture(scope="module")
def strips(tmp_path_factory):
    """The second was processed, and is named, before the first."""
    folder = tmp_path_factory.mktemp("strips")
    return [
        strip("20240101T000500", FIRST, north, folder),
        strip("20240101T000100", SECOND, south, folder),
    ]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    epsg, left, top = grid.tile_corner(PRODUCT[39:44])
    clc = tmp_path_factory.mktemp("clc") / "clc.gpkg"
    square = shapely.box(left, top - SIDE_M, left + SIDE_M, top)
    return CutOptions(land_cover=make_clc(clc, [square], [312], epsg=epsg), countries=load_countries())


@pytest.fixture(scope="module")
def merged(strips, options, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged")
    return out, prepare(strips, out, options)


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".prepared" not in path.parts
    }


def test_each_pixel_is_of_the_first_datastrip_that_has_one(strips):
    (product,) = merge_datastrips([open_safe(path) for path in reversed(strips)])

    for name, pixel_m in (("B02", 10), ("B05", 20), ("B01", 60)):
        shape = (SIDE_M // pixel_m,) * 2
        rows = np.arange(shape[0])[:, None] * pixel_m
        expected = band_pixels(name, shape) + np.where(rows < CUT_M, 0, 100)
        np.testing.assert_array_equal(product.read_band(name), expected)
    rows = np.arange(SIDE_M // 20) * 20
    np.testing.assert_array_equal(product.read_mask("SCL")[:, 7], np.where(rows < CUT_M, 4, 9))
    np.testing.assert_array_equal(product.read_mask("CLD")[:, 7], np.where(rows < CUT_M, 10, 80))
    assert isinstance(product, MergedProduct)
    assert (product.name, product.datastrip) == (PRODUCT, open_safe(strips[0]).datastrip)
    assert product.where == f"{strips[0].name} and {strips[1].name}"


def test_a_mask_that_one_lacks_is_not_known(strips, tmp_path):
    other = strip("20240101T000700", "20170613T101700", south, tmp_path, cld=None)
    (product,) = merge_datastrips([open_safe(strips[0]), open_safe(other)])

    assert product.read_mask("CLD") is None
    assert product.read_mask("SCL").all()


@pytest.mark.slow
def test_patches_of_both_and_across_are_made_once(merged, strips, options, tmp_path):
    out, (report,) = merged
    alone = [prepare([path], tmp_path / path.name, options)[0] for path in strips]

    assert (report.written, report.nodata) == (9, 0)
    assert [one.written for one in alone] == [3, 3]
    rows = {row["patch_id"]: row for part in out.glob("*.parquet") for row in pq.read_table(part).to_pylist()}
    assert sorted(rows) == sorted(f"{PRODUCT}_{x:02d}_{y:02d}" for x in range(3) for y in range(3))
    # The second row of patches has 540 m of the first datastrip and 660 m of the second, which is cloud.
    row = rows[f"{PRODUCT}_00_01"]
    assert row["cloud_share"] == pytest.approx(660 / 1200)
    assert row["cloud_probability"] == pytest.approx((540 * 0.1 + 660 * 0.8) / 1200)
    assert row["contains_cloud_or_shadow"]
    assert (row["nodata_share"], rows[f"{PRODUCT}_00_00"]["cloud_share"]) == (0, 0)


def test_the_order_of_the_inputs_does_not_count(merged, strips, options, tmp_path):
    prepare(list(reversed(strips)), tmp_path, options)
    (again,) = prepare(strips, tmp_path, options)

    assert files(tmp_path) == files(merged[0])
    assert again.already_there


KILLED = """
import os, signal
from reben_cloud.cli import main
from reben_cloud.formats import geotiff

encode, left = geotiff.encode_band, 40  # of 9 patches with 13 files each

def killed(*arguments, **options):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*arguments, **options)

geotiff.encode_band = killed
main()
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same(merged, strips, options, tmp_path):
    out = tmp_path / "out"
    arguments = [
        "prepare", "--clc", options.land_cover, "--out", out,
        *(word for path in strips for word in ("--s2", path)),
    ]  # fmt: skip
    script = [sys.executable, "-c", KILLED, *map(str, arguments)]
    died = subprocess.run(script, stderr=subprocess.PIPE, text=True, check=False)

    assert died.returncode == -signal.SIGKILL, died.stderr
    assert any(out.rglob("*.tif"))
    assert not receipt_path(out, PRODUCT).exists()
    done = command(*arguments)
    assert "9 of 9 squares written" in done.stdout
    tiles = {name: data for name, data in files(out).items() if name.suffix == ".tif"}
    assert tiles == {name: data for name, data in files(merged[0]).items() if name.suffix == ".tif"}


@pytest.mark.parametrize("first", [0, 1])
def test_a_datastrip_that_comes_later_is_told_and_changes_nothing(
    merged, strips, options, tmp_path, caplog, first
):
    out = tmp_path / "out"
    prepare([strips[first]], out, options)
    before = files(out)

    (report,) = prepare(strips, out, options)

    assert report.already_there
    assert files(out) == before
    later, receipt = strips[1 - first].name, receipt_path(out, PRODUCT)
    assert f"{PRODUCT}: was made before {later} came, which reaches it too, and stays as it is" in caplog.text
    # The way out that it names.
    receipt.unlink()
    (report,) = prepare(strips, out, options)
    assert report.written == 9
    assert files(out) == files(merged[0])


def test_a_datastrip_that_is_gone_is_a_conflict(merged, strips, options):
    with pytest.raises(
        ConflictError, match=rf"{PRODUCT}: is done already, from other inputs: .*datastrip {FIRST}"
    ):
        prepare([strips[1]], merged[0], options)


def test_a_datastrip_that_failed_a_check_takes_no_part(strips, options, tmp_path, caplog):
    failed = strip(
        "20240101T000700", "20170613T101500", north, tmp_path, checks={"RADIOMETRIC_QUALITY": "FAILED"}
    )
    (report,) = prepare([failed, strips[1]], tmp_path / "out", options)

    assert (report.written, report.failed_checks) == (3, ())
    assert f"{failed.name} is left out, RADIOMETRIC_QUALITY not PASSED" in caplog.text
    (report,) = prepare([failed], tmp_path / "alone", options)
    assert report.failed_checks == ("RADIOMETRIC_QUALITY",)


def test_what_does_not_go_together_is_refused(strips, options, tmp_path):
    again = strip("20240101T000900", SECOND, south, tmp_path / "again")
    unknown = strip("20240101T000900", "", north, tmp_path / "unknown")
    small = make_safe(
        tmp_path / "small", side_m=2400, datastrip="20170613T101700", generation="20240101T000900"
    )

    for other, message in (
        (again, f"given twice, {again.name} and .*, of one datastrip; leave out one"),
        (unknown, f"given twice, {unknown.name} and .*, which does not name its datastrip"),
        (small, "have tiles of different sizes"),
    ):
        with pytest.raises(SourceError, match=message):
            prepare([*strips, other], tmp_path / "out", options)


def test_an_identifier_that_contradicts_the_other_is_refused(strips, tmp_path):
    path = strip("20240101T000900", FIRST, north, tmp_path)
    main = path / "MTD_MSIL2A.xml"
    other = "S2A_OPER_MSI_L2A_DS_VGS4_20240101T000000_S20170613T101650_N99.99"
    main.write_text(main.read_text().replace("<Granule ", f'<Granule datastripIdentifier="{other}" '))

    with pytest.raises(
        SourceError, match="names datastrips of 20170613T101608 and 20170613T101650; are two products"
    ):
        open_safe(path)


def test_all_files_of_both_are_among_the_inputs_of_a_root(strips):
    found = identify_inputs(strips, {})

    for path in strips:
        num_files = len(open_safe(path).files) + 2
        start = f"{open_safe(path).datastrip:%Y%m%dT%H%M%S}"
        assert sum(key.startswith(f"{PRODUCT} of {start} ") for key in found) == num_files + 1


@pytest.mark.slow
def test_the_command_makes_a_root_of_both(strips, options, tmp_path):
    done = command(
        "prepare", "--s2", strips[0].parent, "--clc", options.land_cover, "--root", tmp_path / "root"
    )

    assert done.exit_code == 0, done.exception
    assert "published 9 patches" in done.stdout


@pytest.mark.slow
def test_items_of_both_give_the_same_patches(merged, strips, options, tmp_path):
    """What was processed again of one of them is left out, and so is what is of an older baseline."""
    again = strip("20230101T000000", SECOND, south, tmp_path / "again")
    older = strip("20240101T000500", FIRST, north, tmp_path / "older", name=PRODUCT.replace("N9999", "N0205"))
    (tmp_path / "images").mkdir()
    with serve_api(tmp_path / "images") as api:
        for path in (*strips, again, older):
            api.planetary(path)

        done = command(
            "prepare", "--stac", api.url, "--collection", "sentinel-2-l2a", "--clc", options.land_cover, "--out",
            tmp_path / "out",
        )  # fmt: skip

    assert done.exit_code == 0, done.exception
    assert f"{PRODUCT}: 9 of 9 squares written" in done.stdout
    tiles = {name: data for name, data in files(tmp_path / "out").items() if name.suffix == ".tif"}
    assert tiles == {name: data for name, data in files(merged[0]).items() if name.suffix == ".tif"}


def test_sen2cor_makes_each_datastrip_in_a_folder_of_its_own(tmp_path):
    """Their Level-2A products have one name where sen2cor is told its time of generation, as for reBEN."""
    tool = tmp_path / "L2A_Process"
    tool.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\n"
        "name = pathlib.Path(sys.argv[3]).name.replace('1C', '2A').rsplit('_', 1)[0]\n"
        "made = pathlib.Path(sys.argv[2]) / f'{name}_20240101T000000.SAFE'\n"
        "made.mkdir()\n(made / 'from').write_text(sys.argv[3])\n"
    )
    tool.chmod(0o755)
    l1c = [tmp_path / f"S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_{time}.SAFE" for time in (FIRST, SECOND)]
    for path in l1c:
        path.mkdir()
        (path / "MTD_MSIL1C.xml").write_text("<a/>")

    made = run_sen2cor(l1c, tmp_path / "L2A", program=str(tool))

    assert [Path((path / "from").read_text()) for path in made] == l1c
    assert run_sen2cor(l1c, tmp_path / "L2A", program=str(tool)) == made
    assert len({re.sub(r".*/", "", str(path)) for path in made}) == 1
