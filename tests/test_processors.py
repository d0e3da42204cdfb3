"""Runs of sen2cor, SNAP and sarsen, with stand-in programs; `sources/test_sarsen.py` runs sarsen itself.

The stand-ins do what these programs do as far as `processors` relies on it: the options of the
real ones, their insistence on empty folders, the names and places of what they write.
"""

import os
import shutil
import stat
import sys
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin

from reben_cloud import grid
from reben_cloud.errors import ConflictError, NotFoundError, SourceError
from reben_cloud.scenes import inputs, sarsen
from reben_cloud.scenes.choice import SceneChoice
from reben_cloud.scenes.grd import read_outline
from reben_cloud.scenes.pairing import pair
from reben_cloud.scenes.preparation import Preparation
from reben_cloud.scenes.prepare import find_s1
from reben_cloud.scenes.processors import run_sen2cor, run_snap
from reben_cloud.scenes.run import run
from reben_cloud.scenes.safe import open_safe
from reben_cloud.scenes.sarsen import run_sarsen
from tests.scenes import PRODUCT, make_safe

L1C = "S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_20170613T101608"

SEN2COR = """
import sys, pathlib
option, out, source = sys.argv[1:]
assert option == "--output_dir"
source = pathlib.Path(source)
for place in ("DATASTRIP/*/QI_DATA", "GRANULE/*/AUX_DATA"):
    if not list(source.glob(place)):
        sys.exit(f"Error: {place} is missing")
if (source / "broken").exists():
    print("Progress[%]: 3.1"); print("Error: bad DEM"); sys.exit(1)
name = source.name.replace("MSIL1C", "MSIL2A").replace("N0205", "N9999")
made = pathlib.Path(out) / (name.rsplit("_", 1)[0] + "_20240101T000000.SAFE")
made.mkdir()
(made / "MTD_MSIL2A.xml").write_text("<a/>")
print("Application terminated successfully.")
with (source.parent / "runs").open("a") as runs: runs.write(source.name + "\\n")
"""

GPT = """
import sys, pathlib
graph, *parameters = sys.argv[1:]
given = dict(p[2:].split("=", 1) for p in parameters)
text = pathlib.Path(graph).read_text()
for name in given:
    assert "${" + name + "}" in text, name
pathlib.Path(given["output"]).write_text(given["dem"] + " " + given["crs"])
"""


SARSEN = """
import sys, pathlib
import numpy as np, rasterio
command, product, group, dem, option, out = sys.argv[1:]
assert (command, option) == ("rtc", "--output-urlpath") and pathlib.Path(product).is_dir()
with rasterio.open(dem) as file:
    heights, t, profile = file.read(1), file.transform, file.profile
power = {"IW/VV": 0.0101, "IW/VH": 0.00101}[group] * (1 + heights)
power[:241] = np.nan  # beyond the swath: the margin of the heights, and a row of the tile
# As sarsen does: on the grid of the elevations, rows from south to north, linear.
south_up = rasterio.Affine(t.a, 0, t.c, 0, -t.e, t.f + t.e * heights.shape[0])
profile.update(transform=south_up, dtype="float32")
with rasterio.open(out, "w", **profile) as file:
    file.write(power[::-1].astype("float32"), 1)
with (pathlib.Path(product).parent / "runs").open("a") as runs: runs.write(group + "\\n")
"""

GRD = "S1A_IW_GRDH_1SDV_20170613T165043_20170613T165108_017015_01C54A_5C6D.SAFE"


@pytest.fixture
def program(tmp_path):
    def make(name, code):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


def make_l1c(folder, name=L1C):
    path = folder / f"{name}.SAFE"
    for place in ("DATASTRIP/DS_1/", "GRANULE/L1C_1/"):
        (path / place).mkdir(parents=True)
    (path / "MTD_MSIL1C.xml").write_text("<a/>")
    return path


def test_sen2cor_gets_repaired_products_and_its_own_logs(tmp_path, program):
    tool = program("L2A_Process", SEN2COR)
    other = L1C.replace("T33UUP", "T33UVP")
    products = [make_l1c(tmp_path), make_l1c(tmp_path, other)]

    made = run_sen2cor(products, tmp_path / "out", program=tool, workers=2)

    assert [p.name[:44] for p in made] == [
        p.name[:44].replace("1C", "2A").replace("N0205", "N9999") for p in products
    ]
    assert all((p / "MTD_MSIL2A.xml").exists() for p in made)
    log = (tmp_path / "out" / "logs" / f"{L1C}.log").read_text()
    assert "--output_dir" in log
    assert "terminated successfully" in log
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")) == []


def test_done_products_are_not_run_again(tmp_path, program):
    tool = program("L2A_Process", SEN2COR)
    product = make_l1c(tmp_path)

    first = run_sen2cor([product], tmp_path / "out", program=tool)
    second = run_sen2cor([product], tmp_path / "out", program=tool)

    assert first == second
    assert (tmp_path / "runs").read_text().splitlines() == [product.name]


def test_a_failed_run_is_told_with_its_last_words_and_leaves_nothing(tmp_path, program):
    tool = program("L2A_Process", SEN2COR)
    product = make_l1c(tmp_path)
    (product / "broken").touch()

    with pytest.raises(
        SourceError, match=r"ended with status 1 and made 0 products; its last words: 'Error: bad DEM'"
    ):
        run_sen2cor([product], tmp_path / "out", program=tool)
    assert list((tmp_path / "out").glob("*.SAFE")) == []

    (product / "broken").unlink()
    assert len(run_sen2cor([product], tmp_path / "out", program=tool)) == 1


def test_what_is_not_installed_is_named_with_the_way_out(tmp_path):
    with pytest.raises(NotFoundError, match=r"install sen2cor 2\.11 .*--sen2cor, or give L2A products"):
        run_sen2cor([make_l1c(tmp_path)], tmp_path, program="no-such-L2A_Process")
    with pytest.raises(
        NotFoundError, match=r"install ESA SNAP .*--gpt, .* as --dem to use sarsen, or give terrain-"
    ):
        run_snap([tmp_path / "x.SAFE"], tmp_path, epsg=32633, program="no-such-gpt")
    assert run_sen2cor([], tmp_path, program="no-such-L2A_Process") == []


def test_other_products_are_refused(tmp_path, program):
    (tmp_path / "S2A_MSIL2A_x.SAFE").mkdir()

    with pytest.raises(SourceError, match=r"no Level-1C \.SAFE folder"):
        run_sen2cor([tmp_path / "S2A_MSIL2A_x.SAFE"], tmp_path, program=program("L2A_Process", SEN2COR))
    with pytest.raises(SourceError, match="no Sentinel-1 IW GRDH product"):
        run_snap([tmp_path / "S2A_MSIL2A_x.SAFE"], tmp_path, epsg=32633, program=program("gpt", GPT))


def test_snap_gets_every_parameter_that_the_graph_has(tmp_path, program):
    grd = make_grd(tmp_path)
    tool = program("gpt", GPT)

    (made,) = run_snap([grd], tmp_path / "out", epsg=32635, program=tool, dem="Copernicus 30m Global DEM")
    again = run_snap([grd], tmp_path / "out", epsg=32635, program=tool, dem="Copernicus 30m Global DEM")

    assert made.name == "S1A_IW_GRDH_1SDV_20170613T165043_32635.tif"
    assert made.read_text() == "Copernicus 30m Global DEM EPSG:32635"
    assert again == [made]


def test_the_graph_is_a_chain_without_a_speckle_filter():
    from importlib.resources import files

    graph = ET.fromstring(files("reben_cloud.scenes").joinpath("snap", "grd_to_db.xml").read_text())
    operators = [node.findtext("operator") for node in graph.findall("node")]
    refids = [source.get("refid") for source in graph.iter("sourceProduct")]

    assert operators[0] == "Read"
    assert operators[-2:] == ["LinearToFromdB", "Write"]
    assert "Speckle-Filter" not in operators
    assert refids == [node.get("id") for node in graph.findall("node")][:-1]


def make_grd(folder, name=GRD):
    """A GRD product as far as it is looked at: the names of its images say mission, time and orbit."""
    path = folder / name
    mission, start, stop, orbit, take = (name.lower().split("_")[i] for i in (0, 4, 5, 6, 7))
    for number, polarization in enumerate(("vv", "vh"), 1):
        image = f"{mission}-iw-grd-{polarization}-{start}-{stop}-{orbit}-{take}-{number:03d}.tiff"
        (path / "measurement").mkdir(parents=True, exist_ok=True)
        (path / "measurement" / image).write_bytes(b"II*")
    return path


def make_heights(path, *, side_m, crs=None):
    """Elevations of 30 m pixels that rise by 1 m a pixel to the east, a little beyond the made tile."""
    epsg, left, top = grid.tile_corner(PRODUCT[39:44])
    size = side_m // 30 + 4
    with rasterio.open(
        path, "w", driver="GTiff", height=size, width=size, count=1, dtype="float32",
        crs=f"EPSG:{epsg}" if crs is None else crs, transform=from_origin(left - 60, top + 60, 30, 30),
    ) as file:  # fmt: skip
        file.write(np.tile(np.arange(size, dtype=np.float32), (size, 1)), 1)
    return path


@pytest.mark.slow
def test_sarsen_makes_scenes_in_decibels_on_the_grid_of_the_tile(tmp_path, program):
    grd = make_grd(tmp_path)
    dem = make_heights(tmp_path / "dem.tif", side_m=2400)
    safe = make_safe(tmp_path, side_m=2400)
    epsg, left, top = grid.tile_corner(PRODUCT[39:44])

    def found():
        return find_s1(
            [grd], [safe], tmp_path / "S1", sarsen=program("sarsen", SARSEN), dem=str(dem), workers=2,
            dem_datum="ellipsoid",
        )  # fmt: skip

    official, (scene,) = found()
    again = found()
    pieces = {
        (piece.y, piece.x): piece.pixels
        for piece in pair(
            [scene],
            time=scene.time,
            epsg=epsg,
            left=left,
            top=top,
            patch_px=120,
            wanted=np.ones((2, 2), bool),
        )
    }

    assert official is None
    assert again == (None, (scene,))
    assert sorted((tmp_path / "runs").read_text().split()) == ["IW/VH", "IW/VV"]
    assert scene.name == GRD[:32]
    # The northernmost row is nodata, so the patches of the north are not covered.
    assert sorted(pieces) == [(1, 0), (1, 1)]
    # Pixel centres every 10 m, heights every 30 m from the centre of a pixel 45 m to the west.
    heights = (45 + 5 + 10 * np.arange(120, 240)) / 30
    np.testing.assert_allclose(pieces[1, 1][0][7], 10 * np.log10(0.0101 * (1 + heights)), rtol=1e-5)
    np.testing.assert_allclose(pieces[1, 1][1][7], 10 * np.log10(0.00101 * (1 + heights)), rtol=1e-5)


@pytest.mark.slow
def test_sarsen_makes_a_tile_in_blocks_and_goes_on_after_the_last(tmp_path, program, monkeypatch):
    grd, whole = make_grd(tmp_path), make_heights(tmp_path / "dem.tif", side_m=2400)
    epsg, left, top = grid.tile_corner(PRODUCT[39:44])
    code = SARSEN.replace("power[:241] = np.nan", "pass")
    failing = (
        code
        + "\nif (pathlib.Path(product).parent / 'runs').read_text().count(group) == 3: sys.exit('no more')"
    )
    options = {
        "epsg": epsg,
        "bounds": (left, top - 2400, left + 2400, top),
        "dem": whole,
        "dem_datum": "ellipsoid",
    }
    once = run_sarsen([grd], tmp_path / "once", program=program("sarsen", code), **options)
    (tmp_path / "runs").unlink()
    monkeypatch.setattr(sarsen, "_BLOCK_M", 1200)

    with pytest.raises(
        SourceError, match=r"5C6D_32633_\w+_VV_300000_\d+: sarsen ended .* last words: 'no more'"
    ):
        run_sarsen([grd], tmp_path / "blocks", program=program("sarsen", failing), **options)
    (tmp_path / "runs").unlink()
    made = run_sarsen([grd], tmp_path / "blocks", program=program("sarsen", code), **options)

    assert [path.name for path in made] == [path.name for path in once]
    assert (tmp_path / "runs").read_text().split() == ["IW/VV"] * 2 + ["IW/VH"] * 2
    assert sorted(path.name for path in (tmp_path / "blocks").glob(".*")) == []
    for path, other in zip(made, once, strict=True):
        with rasterio.open(path) as file, rasterio.open(other) as whole_file:
            assert (file.bounds, file.crs, file.shape) == (
                whole_file.bounds,
                whole_file.crs,
                whole_file.shape,
            )
            np.testing.assert_array_equal(file.read(1), whole_file.read(1))


def test_elevations_that_do_not_fit_are_named(tmp_path, program):
    grd = make_grd(tmp_path)
    epsg, left, top = grid.tile_corner(PRODUCT[39:44])
    options = {
        "epsg": epsg, "bounds": (left, top - 2400, left + 2400, top), "program": program("sarsen", SARSEN),
        "dem_datum": "ellipsoid",
    }  # fmt: skip

    small = make_heights(tmp_path / "small.tif", side_m=1200)
    with pytest.raises(SourceError, match=r"small.tif: has no elevations for 7\d\.\d% of the area"):
        run_sarsen([grd], tmp_path / "S1", dem=small, **options)
    text = tmp_path / "text.tif"
    text.write_text("no raster")
    with pytest.raises(SourceError, match=r"text.tif: cannot be read"):
        run_sarsen([grd], tmp_path / "S1", dem=text, **options)
    with pytest.raises(SourceError, match="go with a file of elevations"):
        find_s1([], [], tmp_path, dem_datum="EGM96")
    with pytest.raises(FileNotFoundError, match=r"heights.tif: no such file of elevations \(--dem\)"):
        find_s1([], [], tmp_path, dem="heights.tif")
    whole = make_heights(tmp_path / "whole.tif", side_m=2400)
    with pytest.raises(SourceError, match=r"no \.SAFE folder of a Sentinel-1 IW GRDH product"):
        run_sarsen([grd.with_suffix(".zip")], tmp_path / "S1", dem=whole, **options)
    with pytest.raises(NotFoundError, match=r"install sarsen 0\.9\.6 .*--sarsen, or give"):
        run_sarsen([grd], tmp_path / "S1", dem=whole, **{**options, "program": "no-such-sarsen"})


@pytest.mark.slow
def test_an_output_of_other_inputs_is_refused_by_what_differs(tmp_path, program):
    """sen2cor, SNAP and sarsen alike: a changed product, option, elevation model or one without a record."""
    l1c, grd = make_l1c(tmp_path), make_grd(tmp_path)
    dem = make_heights(tmp_path / "dem.tif", side_m=2400)
    epsg, left, top = grid.tile_corner(PRODUCT[39:44])
    tools = {name: program(name, code) for name, code in (("l2a", SEN2COR), ("gpt", GPT), ("sarsen", SARSEN))}

    def sen2cor():
        return run_sen2cor([l1c], tmp_path / "a", program=tools["l2a"])

    def snap(dem="SRTM 1Sec HGT"):
        return run_snap([grd], tmp_path / "b", epsg=epsg, program=tools["gpt"], dem=dem)

    def sarsen(datum="ellipsoid"):
        bounds = (left, top - 2400, left + 2400, top)
        return run_sarsen(
            [grd], tmp_path / "c", epsg=epsg, bounds=bounds, dem=dem, dem_datum=datum, program=tools["sarsen"]
        )

    made = [*sen2cor(), *snap(), *sarsen()]
    assert [*sen2cor(), *snap(), *sarsen()] == made

    with pytest.raises(ConflictError, match="elevation model: was SRTM 1Sec HGT, is ACE30; delete it"):
        snap(dem="ACE30")
    with pytest.raises(
        ConflictError, match=r"dem_.*made from other inputs: datum of heights: was ellipsoid, is EGM96"
    ):
        sarsen("EGM96")
    os.utime(dem, ns=(0, 0))
    with pytest.raises(
        ConflictError, match=r"elevation model dem.tif: was .*, is [\d,]+ bytes of 1970-01-01"
    ):
        sarsen()
    image = next(grd.glob("measurement/*-vv-*"))
    image.write_bytes(b"II*changed")
    with pytest.raises(ConflictError, match=r"measurement/s1a-iw-grd-vv.* was 3 bytes of .*, is 10 bytes"):
        snap()
    (l1c / "MTD_MSIL1C.xml").write_text("<b>2</b>")
    with pytest.raises(ConflictError, match=r"MTD_MSIL1C.xml: was .*; delete it to have it made again"):
        sen2cor()
    shutil.rmtree(made[0])
    assert sen2cor() == made[:1]
    (tmp_path / "b" / "logs" / f"{grd.stem}_{epsg}.json").unlink()
    with pytest.raises(
        ConflictError, match=f"{made[1].name}: nothing says what this was made from; delete it"
    ):
        snap()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(("s1a-", "s1b-"), "an image of another product", id="satellite"),
        pytest.param(("20170613t165043", "20170613t165108"), "an image of another product", id="next slice"),
        pytest.param(("-017015-", "-017016-"), "an image of another product", id="orbit"),
        pytest.param(
            ("-vh-", "-vv-"), "no image of VH in measurement/; the product is incomplete", id="no VH"
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_grd_product_of_the_images_of_another_is_refused(tmp_path, program, changes, message, packed):
    grd = make_grd(tmp_path)
    image = next(grd.glob("measurement/*-vh-*"))
    image.rename(image.with_name(image.name.replace(*changes)))
    if packed:
        shutil.make_archive(str(tmp_path / grd.stem), "zip", root_dir=tmp_path, base_dir=grd.name)
        grd = tmp_path / f"{grd.stem}.zip"

    with pytest.raises(SourceError, match=message):
        run_snap([grd], tmp_path / "out", epsg=32633, program=program("gpt", GPT))


def add_clutter(folder):
    """What a Mac and a NAS leave in every folder below."""
    for path in [folder, *filter(lambda p: p.is_dir(), folder.rglob("*"))]:
        (path / ".DS_Store").write_bytes(b"Bud1")
        (path / "@eaDir").mkdir()
        for child in [p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")]:
            (path / f"._{child.name}").write_bytes(b"Mac OS X")
            (path / "@eaDir" / child.name).mkdir()


@pytest.mark.slow
def test_what_systems_leave_in_products_changes_nothing(tmp_path, program):
    l1c, grd = make_l1c(tmp_path), make_grd(tmp_path)
    epsg, left, top = grid.tile_corner(PRODUCT[39:44])
    tools = {name: program(name, code) for name, code in (("l2a", SEN2COR), ("gpt", GPT), ("sarsen", SARSEN))}
    dem = make_heights(tmp_path / "dem.tif", side_m=2400)

    def everything(out):
        return [
            *run_sen2cor([l1c], out / "a", program=tools["l2a"]),
            *run_snap([grd], out / "b", epsg=epsg, program=tools["gpt"]),
            *run_sarsen(
                [grd], out / "c", epsg=epsg, bounds=(left, top - 2400, left + 2400, top), dem=dem,
                dem_datum="ellipsoid", program=tools["sarsen"],
            ),
        ]  # fmt: skip

    made = everything(tmp_path / "out")
    add_clutter(l1c)
    add_clutter(grd)

    assert everything(tmp_path / "out") == made, "not made again, nor refused"
    assert [path.name for path in everything(tmp_path / "other")] == [path.name for path in made]


def test_a_zip_made_on_a_mac_is_a_product(tmp_path, program):
    grd = make_grd(tmp_path)
    for image in list(grd.glob("measurement/*.tiff")):
        (grd.parent / "__MACOSX" / grd.name / "measurement").mkdir(parents=True, exist_ok=True)
        # The resource fork of an image that was there before: another product's.
        fork = image.name.replace("20170613t165043", "20170614t165043")
        (grd.parent / "__MACOSX" / grd.name / "measurement" / fork).write_bytes(b"Mac OS X")
    archive = tmp_path / f"{grd.stem}.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in [*grd.rglob("*"), *(tmp_path / "__MACOSX").rglob("*")]:
            file.write(path, path.relative_to(tmp_path))

    assert len(run_snap([archive], tmp_path / "out", epsg=32633, program=program("gpt", GPT))) == 1


def test_snap_runs_once_for_each_zone_that_a_product_reaches(tmp_path, program):
    """Tiles of two zones; one GRD product lies in one of them, one does not say where it lies."""
    tiles = [
        make_safe(tmp_path, name=name, side_m=1200) for name in (PRODUCT, PRODUCT.replace("T33UUP", "T32TPT"))
    ]
    anywhere, south = make_grd(tmp_path), make_grd(tmp_path, GRD.replace("20170613T1650", "20170614T1650"))
    corners = "48.0,12.0 48.1,12.5 49.0,12.6 48.9,12.1"  # about 33UUP's corner, latitude first
    (south / "manifest.safe").write_text(f"<x><gml:coordinates>{corners}</gml:coordinates></x>")
    jobs = []

    def stand_in(products, output, *, epsg, **options):
        jobs.append((epsg, sorted(path.name[17:25] for path in products)))
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "run_snap", stand_in)
        find_s1([anywhere, south], tiles, tmp_path / "S1", gpt="gpt")

    assert jobs == [(32632, ["20170613"]), (32633, ["20170613", "20170614"])]


def test_sarsen_runs_a_tile_at_a_time(tmp_path):
    """The union box of two tiles far apart would be an array of tens of gigabytes."""
    names = (PRODUCT, PRODUCT.replace("T33UUP", "T33UWQ"), PRODUCT.replace("20170613", "20170623"))
    tiles = [make_safe(tmp_path, name=name, side_m=1200) for name in names]
    (tmp_path / "dem.tif").write_bytes(b"heights")
    boxes = []

    def stand_in(products, output, *, epsg, bounds, **options):
        boxes.append(bounds)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "run_sarsen", stand_in)
        find_s1([make_grd(tmp_path)], tiles, tmp_path / "S1", dem=str(tmp_path / "dem.tif"))

    assert sorted(boxes) == sorted({open_safe(tile).bounds for tile in tiles})
    assert len(boxes) == 2
    assert max(east - west for west, _, east, _ in boxes) == 1200


@pytest.mark.parametrize("zipped", [False, True])
def test_where_a_grd_product_lies_is_read_from_its_manifest(tmp_path, zipped):
    grd = make_grd(tmp_path)
    assert read_outline(grd) is None
    (grd / "manifest.safe").write_text("<gml:coordinates>1,10 1,12 3,12 3,10</gml:coordinates>")
    if zipped:
        grd = Path(shutil.make_archive(str(grd.with_suffix("")), "zip", tmp_path, grd.name))

    assert shapely.bounds(read_outline(grd)).tolist() == [10, 1, 12, 3]


def test_grd_products_of_another_orbit_are_not_processed(tmp_path):
    safe, grd = make_safe(tmp_path, side_m=1200), make_grd(tmp_path)
    relative = (int(GRD.split("_")[6]) - 73) % 175 + 1

    other, same = (SceneChoice(relative_orbit=orbit) for orbit in (relative % 175 + 1, relative))

    assert find_s1([grd], [safe], tmp_path, gpt="no-such-gpt", choice=other) == (None, ())
    with pytest.raises(NotFoundError, match="install ESA SNAP"):
        find_s1([grd], [safe], tmp_path, gpt="no-such-gpt", choice=same)


def test_sentinel_1_of_which_nothing_is_left_is_refused(tmp_path):
    """Without a word the patches would have no Sentinel-1."""
    safe, grd = make_safe(tmp_path, side_m=1200), make_grd(tmp_path)
    relative = (int(GRD.split("_")[6]) - 73) % 175 + 1
    other = SceneChoice(relative_orbit=relative % 175 + 1)
    wanted = Preparation(
        land_cover=tmp_path / "any.gpkg", out=tmp_path / "out", s2=[safe], s1=[grd], s1_choice=other
    )

    with pytest.raises(SourceError, match=r"none of the Sentinel-1 inputs \(--s1\) is of the orbit"):
        run(wanted)
