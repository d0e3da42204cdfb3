"""The country of every real patch, from its id alone."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
