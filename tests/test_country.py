"""The country of every real patch, from its id alone."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
import pytest
import shapely

from reben_cloud import grid
from reben_cloud.bigearthnet.country import REBEN_COUNTRIES, load_countries
from reben_cloud.errors import SourceError


@pytest.mark.slow
def test_country_of_all_549488_patches(shared):
    folder = shared / "data" / "bigearthnet_pipeline"
    names = ("metadata", "metadata_for_patches_with_snow_cloud_or_shadow")
    rows = pa.concat_tables(
        [pq.read_table(folder / f"{n}.parquet", columns=["patch_id", "country"]) for n in names]
    )
    ids = rows["patch_id"].to_pylist()
    want = np.array(rows["country"].to_pylist())
    epsg, minx, _, _, maxy = grid.footprints(ids)
    countries = load_countries()

    right = 0
    for zone in np.unique(epsg).tolist():
        here = epsg == zone
        places, inverse = np.unique(np.stack([minx[here], maxy[here]]), axis=1, return_inverse=True)
        found = countries.nearest(epsg=zone, left=places[0], top=places[1], side_m=1200)
        right += int((found[inverse.ravel()] == want[here]).sum())

    assert right == 549_488


@pytest.mark.parametrize(
    ("patch_id", "country"),
    [
        pytest.param("S2A_MSIL2A_20171208T093351_N9999_R136_T34TEN_00_41", "Kosovo", id="inside one"),
        pytest.param("S2A_MSIL2A_20180508T104031_N9999_R008_T31UGR_00_00", "Belgium", id="inside another"),
        pytest.param("S2A_MSIL2A_20180508T104031_N9999_R008_T31UGR_00_40", "Luxembourg", id="near two"),
    ],
)
def test_a_square_gets_the_nearest(patch_id, country):
    epsg, left, _, _, top = grid.footprint(patch_id)

    found = load_countries().nearest(epsg=epsg, left=np.array([left]), top=np.array([top]), side_m=1200)

    assert found.tolist() == [country]


def test_equally_near_countries_go_by_their_order(tmp_path):
    def square(west):
        ring = [[west, 45], [west + 1, 45], [west + 1, 46], [west, 46], [west, 45]]
        return {"type": "Polygon", "coordinates": [ring]}

    path = tmp_path / "c.geojson"
    features = [
        {"properties": {"NAME_LONG": n}, "geometry": square(w)} for n, w in (("A", 14.5), ("B", 14.5))
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    place = {"epsg": 32633, "left": np.array([500_000]), "top": np.array([5_040_000]), "side_m": 1200}

    assert load_countries(path, names=("A", "B")).nearest(**place).tolist() == ["A"]
    assert load_countries(path, names=("B", "A")).nearest(**place).tolist() == ["B"]
    assert list(load_countries(path, names=None).polygons) == ["A", "B"]
    with pytest.raises(SourceError, match="has no Austria, Belgium"):
        load_countries(path)


def test_what_is_no_country_file_is_refused(tmp_path):
    (tmp_path / "c.geojson").write_text('{"features": [{"properties": {}, "geometry": null}]}')

    with pytest.raises(SourceError, match="no GeoJSON of countries with NAME_LONG"):
        load_countries(tmp_path / "c.geojson")
    with pytest.raises(FileNotFoundError, match=r"none\.geojson"):
        load_countries(tmp_path / "none.geojson")


def test_the_ten_are_the_datasets(shared):
    path = shared / "data" / "bigearthnet_pipeline" / "metadata.parquet"

    assert set(pq.read_table(path, columns=["country"])["country"].unique().to_pylist()) == set(
        REBEN_COUNTRIES
    )


# -- elsewhere: a limit of distance, other files, other places on the globe ---------------------------------


def write_places(path, boxes, *, field="NAME_LONG"):
    features = [
        {"properties": {field: name}, "geometry": shapely.geometry.mapping(shapely.box(*box))}
        for name, box in boxes
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def squares_at(epsg, lon, lat):
    """Squares of 1200 m about some places."""
    x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(np.array(lon), np.array(lat))
    return {
        "epsg": epsg, "left": np.round(x).astype(int) - 600, "top": np.round(y).astype(int) + 600, "side_m": 1200
    }  # fmt: skip


def geodesic_m(lon, lat, box):
    """Distance of a place from a box on the ellipsoid, through points along the box's edge."""
    edge = shapely.get_coordinates(shapely.segmentize(shapely.box(*box).exterior, 0.001))
    return (
        pyproj.Geod(ellps="WGS84")
        .inv(np.full(len(edge), lon), np.full(len(edge), lat), edge[:, 0], edge[:, 1])[2]
        .min()
    )


def test_fiji_is_not_finland():
    place = squares_at(32760, [178.5, 179.9], [-17.8, -16.5])

    assert load_countries().nearest(**place).tolist() != ["", ""]
    assert load_countries(max_distance_m=50_000).nearest(**place).tolist() == ["", ""]


@pytest.mark.parametrize(
    ("epsg", "lon", "lat"), [(32737, 38.0, -1.0), (32719, -70.5, -33.0), (32633, 15.5, 50.0)]
)
def test_a_country_ends_at_its_distance(tmp_path, epsg, lon, lat):
    box = (lon - 3, lat - 1, lon, lat + 1)  # its eastern border is a meridian
    path = write_places(tmp_path / "c.geojson", [("West", box), ("Far", (lon + 90, lat, lon + 91, lat + 1))])
    places = lon + np.array([-0.5, 0.05, 0.1, 0.2, 0.3])

    for limit in (0, 10_000, 20_000):
        found = load_countries(path, names=None, max_distance_m=limit).nearest(
            **squares_at(epsg, places, np.full(5, lat))
        )
        for name, place in zip(found.tolist(), places.tolist(), strict=True):
            distance = max(geodesic_m(place, lat, box) - 600, 0) if place > lon else 0
            if abs(distance - limit) > 50:
                assert name == ("West" if distance <= limit else ""), (place, distance)


def test_within_the_limit_the_nearest_wins_and_of_equals_the_first(tmp_path):
    path = write_places(
        tmp_path / "c.geojson", [("B", (14, 49, 15, 51)), ("A", (15.1, 49, 16, 51)), ("C", (14, 49, 15, 51))]
    )
    countries = load_countries(path, names=None, max_distance_m=30_000)

    assert countries.nearest(**squares_at(32633, [14.5, 15.02, 15.08], [50, 50, 50])).tolist() == [
        "B",
        "B",
        "A",
    ]


@pytest.mark.parametrize("epsg", [32601, 32660, 32701, 32760])
def test_countries_reach_over_the_antimeridian(tmp_path, epsg):
    """Fiji's islands lie on both sides; a map of the world ends there."""
    lat = 16.5 if epsg < 32700 else -16.5
    path = write_places(
        tmp_path / "c.geojson",
        [("East side", (179.2, lat - 1, 180, lat + 1)), ("West side", (-180, lat - 1, -179.2, lat + 1))],
    )
    places = squares_at(epsg, [179.5, -179.5, 178.9, -178.9, 177.5], [lat] * 5)

    found = load_countries(path, names=None, max_distance_m=40_000).nearest(**places)

    assert found.tolist() == ["East side", "West side", "East side", "West side", ""]


@pytest.mark.parametrize("suffix", [".shp", ".gpkg", ".geojson"])
@pytest.mark.parametrize("field", ["NAME_LONG", "name_en", "name"])
def test_natural_earth_of_any_level_and_form(tmp_path, suffix, field):
    boxes = [
        ("One", (14, 49, 15, 50)),
        ("Two", (15, 49, 16, 50)),
        ("One", (17, 49, 18, 50)),
        (None, (0, 0, 1, 1)),
    ]
    path = tmp_path / f"places{suffix}"
    pyogrio.raw.write(
        path, shapely.to_wkb([shapely.box(*box) for _, box in boxes]),
        [np.array([name for name, _ in boxes], object), np.arange(4)], [field, "scalerank"],
        crs="EPSG:4326", geometry_type="Polygon",
    )  # fmt: skip

    countries = load_countries(path, names=None, max_distance_m=1000)

    assert list(countries.polygons) == ["One", "Two"]
    assert countries.nearest(**squares_at(32633, [14.5, 15.5, 17.5, 16.5], [49.5] * 4)).tolist() == [
        "One", "Two", "One", "",
    ]  # fmt: skip
    assert list(load_countries(path, names=("Two",), field=field.upper()).polygons) == ["Two"]
    with pytest.raises(SourceError, match="with REGION"):
        load_countries(path, field="REGION")


def test_a_limit_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"must be in \[0, 1,000,000\] m, got -1"):
        load_countries(max_distance_m=-1)


def test_with_a_wide_limit_the_ten_are_where_they_were():
    """Borders are projected in short pieces, so that squares within a few hundred metres of two may differ."""
    rng = np.random.default_rng(1)
    place = {
        "epsg": 32634, "left": rng.integers(300_000, 700_000, 400) // 20 * 20,
        "top": rng.integers(4_600_000, 5_100_000, 400) // 20 * 20, "side_m": 1200,
    }  # fmt: skip

    near = load_countries(max_distance_m=1_000_000).nearest(**place)

    assert (near == load_countries().nearest(**place)).mean() > 0.98
