"""Heights brought to the ellipsoid: against the same grid read by hand, and by PROJ's rules for what is missing."""

import numpy as np
import pyproj
import pytest
import rasterio
from rasterio.transform import from_origin

from reben_cloud.errors import NotFoundError, SourceError
from reben_cloud.scenes import elevation
from reben_cloud.scenes.elevation import resample_heights

EPSG, LEFT, TOP = 32633, 300_000, 5_400_000
BOUNDS = (LEFT, TOP - 2400, LEFT + 2400, TOP)
HEIGHT_M = 200.0

# Nodes every quarter of a degree around the tile (12.28 E, 48.71 N), steep enough for a mistake to show.
WEST, NORTH, STEP = 11.0, 50.0, 0.25
NODES = np.random.default_rng(3).uniform(40, 55, (13, 13)).astype(np.float32)


def make_geoid(path, *, nodes=NODES, **tags):
    driver = "GTX" if path.suffix == ".gtx" else "GTiff"
    with rasterio.open(
        path, "w", driver=driver, height=nodes.shape[0], width=nodes.shape[1], count=1, dtype="float32",
        crs="EPSG:4326", transform=from_origin(WEST - STEP / 2, NORTH + STEP / 2, STEP, STEP),
    ) as file:  # fmt: skip
        file.write(nodes, 1)
        file.update_tags(**tags)
    return path


def make_dem(path, *, crs, heights=None, version="1.1", side_m=3600, **options):
    """A plane of `HEIGHT_M`, or other heights, in UTM or in degrees, wider than the tile."""
    size = side_m // 30
    transform = from_origin(LEFT - 600, TOP + 600, 30, 30)
    if pyproj.CRS(crs).is_geographic or str(crs) == "EPSG:9707":
        transform = from_origin(12.2, 48.8, 0.002, 0.002)
    with rasterio.open(
        path, "w", driver="GTiff", height=size, width=size, count=1, dtype="float32", crs=crs, transform=transform,
        GEOTIFF_VERSION=version, **options,
    ) as file:  # fmt: skip
        file.write(np.full((size, size), HEIGHT_M, np.float32) if heights is None else heights, 1)
    return path


def undulation():
    """The nodes, bilinear, at the centres of the tile's pixels; by hand."""
    x, y = np.meshgrid(LEFT + 5 + 10 * np.arange(240), TOP - 5 - 10 * np.arange(240))
    lon, lat = pyproj.Transformer.from_crs(EPSG, 4326, always_xy=True).transform(x, y)
    column, row = (lon - WEST) / STEP, (NORTH - lat) / STEP
    c, r = column.astype(int), row.astype(int)
    u, v = column - c, row - r
    return (1 - v) * ((1 - u) * NODES[r, c] + u * NODES[r, c + 1]) + v * (
        (1 - u) * NODES[r + 1, c] + u * NODES[r + 1, c + 1]
    )


def heights_of(tmp_path, dem, **options):
    made = tmp_path / "made.tif"
    resample_heights(dem, made, epsg=EPSG, bounds=BOUNDS, **options)
    with rasterio.open(made) as file:
        assert (file.crs.to_epsg(), file.transform) == (EPSG, from_origin(LEFT, TOP, 10, 10))
        return file.read(1)


@pytest.mark.parametrize("grid", ["geoid.gtx", "geoid.tif", "my geoid.tif"])
@pytest.mark.parametrize(
    ("dem", "options"),
    [
        pytest.param({"crs": "EPSG:9707"}, {}, id="compound in degrees"),
        pytest.param({"crs": "EPSG:9707", "version": "1.0"}, {}, id="compound of an old GeoTIFF"),
        pytest.param({"crs": "EPSG:32633+5773"}, {}, id="compound in metres"),
        pytest.param({"crs": "EPSG:32633+3855"}, {}, id="EGM2008"),
        pytest.param({"crs": "EPSG:32633+7837"}, {}, id="another geoid"),
        pytest.param({"crs": "EPSG:32633"}, {"datum": "EGM96"}, id="declared"),
        pytest.param({"crs": "EPSG:32633"}, {}, id="declared by the grid"),
    ],
)
def test_heights_above_a_geoid_are_brought_to_the_ellipsoid(tmp_path, grid, dem, options):
    path = make_dem(tmp_path / "dem.tif", **dem)

    found = heights_of(tmp_path, path, geoid=make_geoid(tmp_path / grid), **options)

    want = HEIGHT_M + undulation()
    assert np.ptp(want) > 0.1
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_a_margin_has_the_heights_that_there_are_and_else_those_of_the_edge(tmp_path):
    """The model reaches 600 m beyond the tile, the margin twice as far."""
    slope = np.broadcast_to(np.arange(120, dtype=np.float32), (120, 120))
    dem, geoid = (
        make_dem(tmp_path / "dem.tif", crs="EPSG:32633", heights=slope),
        make_geoid(tmp_path / "g.gtx"),
    )
    alone = heights_of(tmp_path, dem, geoid=geoid)

    made = tmp_path / "wide.tif"
    resample_heights(dem, made, epsg=EPSG, bounds=BOUNDS, geoid=geoid, margin_m=1_200)

    with rasterio.open(made) as file:
        assert file.transform == from_origin(LEFT - 1_200, TOP + 1_200, 10, 10)
        wide = file.read(1)
    assert wide.shape == (480, 480)
    np.testing.assert_array_equal(wide[120:-120, 120:-120], alone)
    # 500 m to the west the slope goes on, by 1 m each 30 m; beyond 600 m it is as high as at the edge of the tile.
    np.testing.assert_allclose(wide[240, 120] - wide[240, 70], 500 / 30, atol=1e-3)
    assert (wide[240, :59] == wide[240, 120]).all()
    np.testing.assert_array_equal(wide[:59, 120:-120], np.broadcast_to(alone[0], (59, 240)))


def test_what_gdal_makes_of_the_same_grid_agrees(tmp_path):
    """A second independent way: the grid warped bilinearly onto the tile."""
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    geoid = make_geoid(tmp_path / "geoid.tif")

    found = heights_of(tmp_path, make_dem(tmp_path / "dem.tif", crs="EPSG:9707"), geoid=geoid)

    place = {"crs": f"EPSG:{EPSG}", "transform": from_origin(LEFT, TOP, 10, 10), "height": 240, "width": 240}
    with (
        rasterio.open(geoid) as file,
        WarpedVRT(file, resampling=Resampling.bilinear, tolerance=1e-4, **place) as view,
    ):
        np.testing.assert_allclose(found - HEIGHT_M, view.read(1), atol=1e-3)


@pytest.mark.parametrize(
    ("crs", "options"),
    [("EPSG:4979", {}), ("EPSG:32633", {"datum": "ellipsoid"}), ("EPSG:4979", {"datum": "ellipsoid"})],
)
def test_heights_above_the_ellipsoid_stay(tmp_path, crs, options):
    found = heights_of(tmp_path, make_dem(tmp_path / "dem.tif", crs=crs), **options)

    np.testing.assert_allclose(found, HEIGHT_M, atol=1e-4)


def test_an_installed_grid_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(elevation, "get_user_data_dir", lambda: str(tmp_path))
    make_geoid(tmp_path / "us_nga_egm96_15.tif", TYPE="VERTICAL_OFFSET_GEOGRAPHIC_TO_VERTICAL")

    found = heights_of(tmp_path, make_dem(tmp_path / "dem.tif", crs="EPSG:9707"))

    np.testing.assert_allclose(found, HEIGHT_M + undulation(), atol=1e-4)


@pytest.mark.parametrize(
    ("dem", "options", "error", "message"),
    [
        pytest.param(
            {"crs": "EPSG:32633"}, {}, SourceError, r"does not say what the heights are above; say it: --dem-datum "
            r"ellipsoid\|EGM96\|EGM2008, or --geoid FILE", id="nothing said",
        ),
        pytest.param(
            {"crs": "EPSG:9707"}, {}, NotFoundError, "above EGM96, whose geoid grid PROJ lacks.*us_nga_egm96_15.tif",
            id="no grid",
        ),
        pytest.param(
            {"crs": "EPSG:32633"}, {"datum": "EGM2008"}, NotFoundError, "above EGM2008.*get us_nga_egm08_25.tif",
            id="declared, no grid",
        ),
        pytest.param(
            {"crs": "EPSG:32633+7837"}, {}, NotFoundError, "above DHHN2016 height; give the grid", id="other geoid"
        ),
        pytest.param(
            {"crs": "EPSG:9707"}, {"datum": "ellipsoid"}, SourceError,
            "CRS says that the heights are above EGM96, --dem-datum says ellipsoid", id="contradiction",
        ),
        pytest.param(
            {"crs": "EPSG:32633"}, {"datum": "ellipsoid", "geoid": "g.gtx"}, SourceError, "need no geoid grid",
            id="ellipsoid and a grid",
        ),
        pytest.param({"crs": "EPSG:32633"}, {"datum": "egm 96"}, ValueError, "one of ellipsoid, EGM96", id="name"),
        pytest.param({"crs": "EPSG:32633"}, {"geoid": "no.gtx"}, FileNotFoundError, "no such geoid", id="no such grid"),
        pytest.param({"crs": "EPSG:32633"}, {"geoid": "text.gtx"}, SourceError, "text.gtx: no geoid grid", id="text"),
        pytest.param(
            {"crs": "EPSG:9707"}, {"geoid": "egm08.tif"}, SourceError,
            "the grid of EGM2008, the heights are above EGM96",
            id="grid of another geoid",
        ),
        pytest.param(
            {"crs": "EPSG:9707"}, {"geoid": "away.gtx"}, SourceError, "does not cover the tile", id="grid elsewhere"
        ),
        pytest.param({"crs": "EPSG:32633+6360"}, {}, SourceError, "in .US survey foot.; convert", id="feet"),
        pytest.param(
            {"crs": "EPSG:32633", "heights": np.full((120, 120), -32768, np.float32)}, {"datum": "ellipsoid"},
            SourceError, r"elevations from -32768 to -32768, outside \[-600, 9100\] m", id="gaps not declared",
        ),
    ],
)  # fmt: skip
def test_nothing_is_assumed(tmp_path, monkeypatch, dem, options, error, message):
    monkeypatch.setattr(elevation, "get_user_data_dir", lambda: str(tmp_path / "none"))
    make_geoid(tmp_path / "g.gtx")
    make_geoid(tmp_path / "egm08.tif", target_crs_epsg_code="3855")
    (tmp_path / "text.gtx").write_text("no raster")
    make_geoid(tmp_path / "away.gtx", nodes=NODES[:3, :3])
    if "geoid" in options:
        options = {**options, "geoid": tmp_path / options["geoid"]}

    with pytest.raises(error, match=message):
        heights_of(tmp_path, make_dem(tmp_path / "dem.tif", **dem), **options)
    assert not (tmp_path / "made.tif").exists()


def test_the_units_of_the_band_count(tmp_path):
    dem = make_dem(tmp_path / "dem.tif", crs="EPSG:32633", heights=np.full((120, 120), 100, np.float32))
    with rasterio.open(dem, "r+") as file:
        file.scales, file.offsets = (2.0,), (10.0,)
    np.testing.assert_allclose(heights_of(tmp_path, dem, datum="ellipsoid"), 210)

    with rasterio.open(dem, "r+") as file:
        file.units = ("ft",)
    with pytest.raises(SourceError, match="elevations in 'ft'; convert them to metres"):
        heights_of(tmp_path, dem, datum="ellipsoid")
