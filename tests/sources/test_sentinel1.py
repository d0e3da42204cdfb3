"""Pairing with Sentinel-1: by name, and by time and cover from made scenes in other projections."""

from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.transform import from_origin
from rasterio.warp import Resampling, calculate_default_transform, reproject

from reben_cloud.bigearthnet import grid
from reben_cloud.errors import SourceError
from reben_cloud.scenes.choice import SceneChoice, direction_of
from reben_cloud.scenes.official_s1 import v1_files
from reben_cloud.scenes.pairing import pair
from reben_cloud.scenes.sentinel1 import open_scenes

LEFT, TOP = 300_000, 5_400_000
TIME = datetime(2017, 6, 13, 10, 10, 31, tzinfo=UTC)
TILE = {"epsg": 32633, "left": LEFT, "top": TOP, "patch_px": 120}


def decibels(shape, level=-12.0):
    """A smooth field that is never 0 and different at each pixel of a neighbourhood."""
    y, x = np.indices(shape)
    return np.stack(
        [level + np.sin(y / 40) + np.cos(x / 60), level - 7 + np.sin(y / 40) + np.cos(x / 60)]
    ).astype("float32")


def write_scene(
    folder, time, pixels, *, left=LEFT, top=TOP, crs="EPSG:32633", names=("VV", "VH"), nodata=None, size_m=10
):
    path = folder / f"S1A_IW_GRDH_1SDV_{time}_20170613T165834_016998_01C4B3_5C6D.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=pixels.shape[1], width=pixels.shape[2], count=len(pixels), dtype="float32",
        crs=crs, transform=from_origin(left, top, size_m, size_m), nodata=nodata,
    ) as file:  # fmt: skip
        file.write(pixels)
        file.descriptions = names
    return path


def cut(scenes, wanted):
    return {(p.y, p.x): p for p in pair(scenes, time=TIME, wanted=wanted, **TILE)}


def test_pixels_of_a_scene_on_the_tiles_grid_are_cut_as_they_are(tmp_path):
    pixels = decibels((400, 500))
    write_scene(tmp_path, "20170613T165809", pixels, left=LEFT - 500, top=TOP + 200)

    found = cut(open_scenes([tmp_path]), np.ones((3, 3), bool))

    # 500 px from 50 px west of the tile: columns 0 to 2 fit; 400 rows from 20 px north: rows 0 to 2 fit.
    assert sorted(found) == [(y, x) for y in range(3) for x in range(3)]
    for (y, x), piece in found.items():
        want = pixels[:, 20 + 120 * y : 140 + 120 * y, 50 + 120 * x : 170 + 120 * x]
        assert np.array_equal(piece.pixels, want)
        assert piece.scene.name == "S1A_IW_GRDH_1SDV_20170613T165809"


def test_each_patch_gets_the_nearest_scene_that_covers_it_fully(tmp_path):
    near = decibels((360, 360), -10)
    near[:, 100, 130] = np.nan  # one missing pixel in row 0, column 1
    near[1, 300, 300] = 0.0  # one of SNAP's fill zeros, in one polarization of row 2, column 2
    write_scene(tmp_path, "20170613T165809", near)
    write_scene(tmp_path, "20170610T165809", decibels((360, 240), -20))
    write_scene(tmp_path, "20170601T165809", decibels((240, 360), -30))
    wanted = np.ones((3, 3), bool)
    wanted[1, 1] = False

    found = cut(open_scenes([tmp_path]), wanted)

    times = {place: piece.scene.name[17:25] for place, piece in found.items()}
    assert times.pop((0, 1)) == "20170610"
    assert (2, 2) not in times
    assert (1, 1) not in times
    assert set(times.values()) == {"20170613"}
    assert len(times) == 6


def test_declared_nodata_is_not_data(tmp_path):
    pixels = decibels((120, 240))
    pixels[0, 5, 125] = -9999
    write_scene(tmp_path, "20170613T165809", pixels, nodata=-9999)

    assert sorted(cut(open_scenes([tmp_path]), np.ones((1, 2), bool))) == [(0, 0)]


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3035", "EPSG:32632"])
def test_a_scene_in_another_projection_lands_where_it_belongs(tmp_path, crs):
    pixels = decibels((600, 600))
    origin = from_origin(LEFT - 1200, TOP + 1200, 10, 10)
    bounds = (LEFT - 1200, TOP - 4800, LEFT + 4800, TOP + 1200)
    transform, width, height = calculate_default_transform("EPSG:32633", crs, 600, 600, *bounds)
    warped = np.full((2, height, width), np.nan, "float32")
    reproject(
        pixels, warped, src_transform=origin, src_crs="EPSG:32633", dst_transform=transform, dst_crs=crs,
        resampling=Resampling.bilinear, dst_nodata=np.nan,
    )  # fmt: skip
    path = tmp_path / "S1B_IW_GRDH_1SDV_20170612T165809_x_VV_VH.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=2, dtype="float32", crs=crs, transform=transform,
        nodata=np.nan,
    ) as file:  # fmt: skip
        file.write(warped)

    found = cut(open_scenes([path]), np.ones((2, 2), bool))

    assert len(found) == 4
    for (y, x), piece in found.items():
        want = pixels[:, 120 * (y + 1) : 120 * (y + 2), 120 * (x + 1) : 120 * (x + 2)]
        # Two bilinear steps of a field with slopes of at most 0.04 dB a pixel; a pixel off would show.
        assert np.abs(piece.pixels - want).max() < 0.02


def test_files_of_one_polarization_each_make_one_scene(tmp_path):
    pixels = decibels((120, 120))
    for number, polarization in enumerate(("VV", "VH")):
        path = write_scene(tmp_path, "20170613T165809", pixels[number : number + 1], names=(None,))
        path.rename(path.with_name(f"{path.stem}_{polarization}_db.tif"))

    (scene,) = open_scenes([tmp_path])

    assert np.array_equal(cut([scene], np.ones((1, 1), bool))[0, 0].pixels, pixels)


def test_bands_are_told_apart_by_their_description(tmp_path):
    pixels = decibels((120, 120))
    write_scene(tmp_path, "20170613T165809", pixels[::-1], names=("Sigma0_VH_db", "Sigma0_VV_db"))

    assert np.array_equal(cut(open_scenes([tmp_path]), np.ones((1, 1), bool))[0, 0].pixels, pixels)


def add_dimap(path, names, start="13-JUN-2017 16:58:09.123456"):
    """What SNAP writes into TIFF tag 65000, where GDAL sees nothing."""
    with tifffile.TiffFile(path) as file:
        pixels = file.asarray()
        keep = [
            (t.code, t.dtype, t.count, t.value, True) for t in file.pages.first.tags if t.code in GEO_TAGS
        ]
    bands = "".join(
        f"<Spectral_Band_Info><BAND_INDEX>{i}</BAND_INDEX><BAND_NAME>{name}</BAND_NAME></Spectral_Band_Info>"
        for i, name in enumerate(names)
    )
    xml = (
        '<Dimap_Document name="x"><Production><PRODUCT_SCENE_RASTER_START_TIME>'
        f"{start}</PRODUCT_SCENE_RASTER_START_TIME></Production>"
        f"<Image_Interpretation>{bands}</Image_Interpretation></Dimap_Document>"
    )
    tifffile.imwrite(
        path,
        pixels,
        photometric="minisblack",
        planarconfig="contig",
        extratags=[*keep, (65_000, "s", 0, xml, True)],
    )


GEO_TAGS = (33550, 33922, 34735, 34736, 34737)
MUTE = (None, None)


@pytest.mark.parametrize("order", [("VV", "VH"), ("VH", "VV")])
@pytest.mark.parametrize("form", ["descriptions", "SNAP", "name", "one file each"])
def test_every_form_says_which_band_is_which(tmp_path, order, form):
    """Whatever the order, VV is VV: in the descriptions, in SNAP's tag, in the name, in files of their own."""
    pixels = decibels((120, 120))
    stored = pixels if order == ("VV", "VH") else pixels[::-1]
    if form == "one file each":
        for polarization, band in zip(order, stored, strict=True):
            path = write_scene(tmp_path, "20170613T165809", band[None], names=(None,))
            path.rename(path.with_name(f"{path.stem}_{polarization}.tif"))
    else:
        names = [f"Sigma0_{polarization}_db" for polarization in order]
        path = write_scene(
            tmp_path, "20170613T165809", stored, names=names if form == "descriptions" else MUTE
        )
        if form == "SNAP":
            add_dimap(path, names)
        if form == "name":
            path.rename(path.with_name(f"{path.name[:32]}_{'_'.join(order)}.tif"))

    (scene,) = open_scenes([tmp_path])

    assert np.array_equal(cut([scene], np.ones((1, 1), bool))[0, 0].pixels, pixels)


@pytest.mark.parametrize("form", ["descriptions", "SNAP", "name", "one file each"])
def test_vh_above_vv_is_refused_in_every_form(tmp_path, form):
    swapped = decibels((120, 120))[::-1]
    if form == "one file each":
        for polarization, band in zip(("VV", "VH"), swapped, strict=True):
            path = write_scene(tmp_path, "20170613T165809", band[None], names=(None,))
            path.rename(path.with_name(f"{path.stem}_{polarization}.tif"))
    else:
        names = ("VV", "VH")
        path = write_scene(
            tmp_path, "20170613T165809", swapped, names=names if form == "descriptions" else MUTE
        )
        if form == "SNAP":
            add_dimap(path, names)
        if form == "name":
            path.rename(path.with_name(f"{path.name[:32]}_VV_VH.tif"))

    with pytest.raises(
        SourceError,
        match=r"S1A_IW_GRDH_1SDV_20170613T165809.*tif: VV is not above VH \(medians -1\d\.\d and .*swapped",
    ):
        cut(open_scenes([tmp_path]), np.ones((1, 1), bool))


def test_one_band_twice_is_refused(tmp_path):
    pixels = decibels((120, 120))
    write_scene(tmp_path, "20170613T165809", pixels[[0, 0]])

    with pytest.raises(SourceError, match=r"VV is not above VH .* swapped or the same"):
        cut(open_scenes([tmp_path]), np.ones((1, 1), bool))


def test_a_patch_of_calm_water_among_others_refuses_nothing(tmp_path):
    pixels = decibels((240, 240))
    pixels[1, :120, :120] = pixels[0, :120, :120] + 0.1  # noise in both
    write_scene(tmp_path, "20170613T165809", pixels)

    assert len(cut(open_scenes([tmp_path]), np.ones((2, 2), bool))) == 4


def test_decibels_of_another_scale_are_refused(tmp_path):
    write_scene(tmp_path, "20170613T165809", decibels((120, 120)) * 100)

    with pytest.raises(SourceError, match=r"medians of VV -1.* are outside \[-60, 30\] dB"):
        cut(open_scenes([tmp_path]), np.ones((1, 1), bool))


def test_what_snap_wrote_into_a_file_is_compared_with_its_name(tmp_path):
    path = write_scene(tmp_path, "20170613T165809", decibels((120, 120)), names=MUTE)
    add_dimap(path, ("VV", "VH"), start="13-JUN-2017 16:58:34.000000")
    with pytest.raises(
        SourceError, match="starts at 2017-06-13T16:58:34, its name says 2017-06-13T16:58:09; was it"
    ):
        open_scenes([path])

    path = write_scene(tmp_path, "20170613T165809", decibels((120, 120)), names=MUTE)
    add_dimap(path, ("VV", "VH"))
    path = path.rename(path.with_name(f"{path.name[:32]}_VH_VV.tif"))
    with pytest.raises(SourceError, match="SNAP's description and its name disagree"):
        open_scenes([path])


def test_linear_power_is_refused(tmp_path):
    write_scene(tmp_path, "20170613T165809", 10 ** (decibels((120, 120)) / 10))

    with pytest.raises(SourceError, match=r"it is linear power, convert it to dB"):
        cut(open_scenes([tmp_path]), np.ones((1, 1), bool))


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        pytest.param({}, "scene.tif", "no Sentinel-1 scene; a name begins like", id="name"),
        pytest.param({"names": ("a", "b")}, None, "cannot tell VV from VH", id="descriptions"),
        pytest.param(
            {"names": (None, None)}, None, r"cannot tell VV .* put VV_VH or VH_VV into the name", id="mute"
        ),
        pytest.param(
            {"names": ("VH", "VV")}, "S1A_IW_GRDH_1SDV_20170613T165809_VV_VH.tif",
            "the descriptions of its bands and its name disagree .*band 2 is VV, band 1 is VH; band 1 is VV",
            id="contradiction",
        ),
        pytest.param({"names": ("VV", "VV")}, None, "cannot tell VV from VH", id="VV twice"),
        pytest.param({"names": ("ratio_VV_VH", "VH")}, None, "cannot tell VV from VH", id="both in one"),
        pytest.param({"count": 1, "names": (None,)}, None, "is it VV or VH", id="which polarization"),
        pytest.param(
            {"count": 1, "names": (None,)}, "S1A_IW_GRDH_1SDV_20170613T165809_VV.tif", "no VH; a scene needs", id="one"
        ),
        pytest.param({"crs": None}, None, "has no CRS; terrain-correct", id="crs"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_bad_scene_is_refused_by_name(tmp_path, options, name, message):
    pixels = decibels((120, 120))[: options.pop("count", 2)]
    path = write_scene(tmp_path, "20170613T165809", pixels, **options)
    if name:
        path.rename(tmp_path / name)

    with pytest.raises(SourceError, match=message):
        open_scenes([tmp_path])


def test_a_scene_given_twice_is_refused(tmp_path):
    path = write_scene(tmp_path, "20170613T165809", decibels((120, 120)))

    with pytest.raises(SourceError, match="VV of this scene is also in"):
        open_scenes([path, path])
    with pytest.raises(FileNotFoundError, match="no such Sentinel-1 scene"):
        open_scenes([tmp_path / "S1A.tif"])


def test_what_holds_no_scene_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"no Sentinel-1 scenes \(.tif\) and no official patches there"
    ):
        open_scenes([tmp_path / "empty"])
    text = tmp_path / "S1A_IW_GRDH_1SDV_20170613T165043_VV_VH.tif"
    text.write_text("no raster")
    with pytest.raises(SourceError, match=f"{text.name}: no readable GeoTIFF"):
        open_scenes([text])


def test_official_patches_are_found_in_both_layouts(shared):
    v1 = shared / "data" / "bigearthnet_v1_example" / "BigEarthNet-S1-Example"
    v2 = shared / "data" / "rico_hdl_bigearthnet" / "tiffs" / "BigEarthNet" / "BigEarthNet-S1"
    flat, nested = (
        "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48",
        "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_70_48",
    )

    assert {p: f.name for p, f in v1_files(v1, flat).items()} == {p: f"{flat}_{p}.tif" for p in ("VV", "VH")}
    assert {p: f.name for p, f in v1_files(v2, nested).items()} == {
        p: f"{nested}_{p}.tif" for p in ("VV", "VH")
    }
    with pytest.raises(FileNotFoundError, match="S1A_x: no folder of this S1 patch"):
        v1_files(v1, "S1A_x")


# -- which scenes may be taken ---------------------------------------------------------------------------


def scenes_of(tmp_path, *times):
    for time in times:
        write_scene(tmp_path, time, decibels((120, 120)))
    return open_scenes([tmp_path])


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        pytest.param({}, ["20170613T165809", "20170612T051200", "20170620T165800"], id="all"),
        pytest.param({"max_gap_days": 1}, ["20170613T165809"], id="within a day"),
        pytest.param(
            {"max_gap_days": 1.3}, ["20170613T165809", "20170612T051200"], id="within a day and a bit"
        ),
        pytest.param({"direction": "ascending"}, ["20170613T165809", "20170620T165800"], id="evening"),
        pytest.param({"direction": "descending"}, ["20170612T051200"], id="morning"),
        pytest.param({"direction": "descending", "max_gap_days": 1}, [], id="none"),
    ],
)
def test_scenes_are_chosen_and_ordered(tmp_path, options, taken):
    scenes = scenes_of(tmp_path, "20170620T165800", "20170612T051200", "20170613T165809")
    choice = SceneChoice(**options)

    found = choice.ordered(scenes, time=TIME, epsg=32633, bounds=(LEFT, TOP - 1200, LEFT + 1200, TOP))
    pieces = list(pair(scenes, time=TIME, wanted=np.ones((1, 1), bool), choice=choice, **TILE))

    assert [scene.name[17:] for scene in found] == taken
    assert [piece.scene.name[17:] for piece in pieces] == taken[:1]


@pytest.mark.parametrize(
    ("time", "place", "direction"),
    [
        # Hours of passes that are usual there; Fiji's evening is UTC's morning.
        pytest.param("20170613T165043", (32633, 390_000, 5_820_000), "ascending", id="Berlin evening"),
        pytest.param("20170613T052500", (32633, 390_000, 5_820_000), "descending", id="Berlin morning"),
        pytest.param("20240114T155001", (32737, 257_000, 9_857_000), "ascending", id="Nairobi evening"),
        pytest.param("20240114T025000", (32737, 257_000, 9_857_000), "descending", id="Nairobi morning"),
        pytest.param("20240119T235902", (32719, 346_000, 6_297_000), "ascending", id="Santiago evening"),
        pytest.param("20240119T100200", (32719, 346_000, 6_297_000), "descending", id="Santiago morning"),
        pytest.param("20240105T063500", (32760, 650_000, 8_000_000), "ascending", id="Fiji evening"),
        pytest.param("20240105T173000", (32760, 650_000, 8_000_000), "descending", id="Fiji morning"),
        pytest.param("20200105T155000", (32633, 500_000, 8_700_000), "ascending", id="Svalbard afternoon"),
        pytest.param("20200105T064000", (32633, 500_000, 8_700_000), "descending", id="Svalbard morning"),
    ],
)
def test_the_direction_follows_from_the_hour_and_the_place(time, place, direction):
    epsg, x, y = place

    assert direction_of(grid.parse_time(time), epsg=epsg, bounds=(x, y, x + 100, y + 100)) == direction


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        # The first of a cycle, the last, and one between.
        ("S1A_IW_GRDH_1SDV_20170613T165043_20170613T165108_000073_01C562_0E3B.SAFE", 1),
        ("S1A_IW_GRDH_1SDV_20170613T165043_20170613T165108_000247_01C562_0E3B.SAFE", 175),
        ("S1A_IW_GRDH_1SDV_20170613T165043_20170613T165108_017015_01C562_0E3B.SAFE", 143),
        ("S1B_IW_GRDH_1SDV_20170612T165809_20170612T165834_000027_00A922_0000_VV_VH.tif", 1),
        ("S1B_IW_GRDH_1SDV_20170612T165809_20170612T165834_006020_00A922_0000_VV_VH.tif", 44),
    ],
)
def test_a_relative_orbit_is_that_of_the_name(name, relative):
    assert SceneChoice(relative_orbit=relative).takes_orbit(name)
    assert not SceneChoice(relative_orbit=relative % 175 + 1).takes_orbit(name)


def test_what_does_not_say_its_orbit_is_refused():
    choice = SceneChoice(relative_orbit=5)
    of_s1c = "S1C_IW_GRDH_1SDV_20250613T165043_20250613T165108_000500_01C562"
    for name in ("S1A_IW_GRDH_1SDV_20170613T165043_VV_VH.tif", of_s1c):
        with pytest.raises(SourceError, match="its relative orbit is not known"):
            choice.takes_orbit(name)
    assert SceneChoice().takes_orbit("anything")


@pytest.mark.parametrize(
    "options", [{"max_gap_days": -1}, {"direction": "up"}, {"relative_orbit": 0}, {"relative_orbit": 176}]
)
def test_a_choice_that_is_none_is_refused(options):
    with pytest.raises(ValueError, match=r"gap must be|direction is|orbit lies"):
        SceneChoice(**options)


def test_a_scene_of_two_zones_comes_first_on_the_tiles_own_grid(tmp_path):
    """The same scene, made for two zones: that of the tile is cut as it is, the other one resampled."""
    pixels = decibels((120, 120))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_scene(tmp_path / "a", "20170613T165809", pixels + 1, left=LEFT - 442_000, crs="EPSG:32634")
    write_scene(tmp_path / "b", "20170613T165809", pixels)
    scenes = [*open_scenes([tmp_path / "a"]), *open_scenes([tmp_path / "b"])]

    first, *_ = SceneChoice().ordered(
        scenes, time=TIME, epsg=32633, bounds=(LEFT, TOP - 1200, LEFT + 1200, TOP)
    )

    assert first.is_in(32633)
    (piece,) = pair(scenes, time=TIME, wanted=np.ones((1, 1), bool), **TILE)
    np.testing.assert_array_equal(piece.pixels, pixels)
