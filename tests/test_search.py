"""Search against a brute-force filter, and against counts anyone can take from the official files."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime, timedelta
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from reben_cloud import grid
from reben_cloud.bigearthnet.official import COUNTRIES, OFFICIAL_SCHEMA
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import MissingExtraError, NotFoundError
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.manifest import Manifest
from reben_cloud.root.query import Query
from reben_cloud.search import cql, find_rows, parse_interval
from reben_cloud.search.shapes import SPATIAL
from reben_cloud.store import open_store

ZIGZAG = shapely.LineString([(-9 + 0.04 * i, 37 + 30 * (i % 2)) for i in range(1000)]).wkt


@pytest.fixture(scope="module")
def everything(official_catalog):
    """All 549,488 real rows as a dataset without pixels."""
    ids = pq.read_table(official_catalog / "patches.parquet", columns=["id"])["id"].to_pylist()
    manifest = Manifest.of(
        created_from="metadata",
        schema=REBEN.only([]),
        metadata_columns=OFFICIAL_SCHEMA.names,
        num_patches=len(ids),
        products=sorted({i[:-6] for i in ids}),
        countries=COUNTRIES,
        fingerprint="0" * 16,
    )
    return Dataset(open_store(official_catalog), manifest)


@pytest.fixture(scope="module")
def frame(everything):
    """Every 97th row as a geopandas frame, for the brute force."""
    return everything.search().to_geopandas().iloc[::97].reset_index(drop=True)


def test_a_real_search_counts_what_the_official_file_counts(everything, official_files):
    found = everything.search(
        country="Portugal", datetime="2017-06/2017-08", split="train", labels="Agro-forestry areas"
    )

    columns = ["patch_id", "country", "split", "labels"]
    rows = pq.read_table(official_files, columns=columns).to_pandas()
    rows = rows[(rows.country == "Portugal") & (rows.split == "train")]
    rows = rows[rows.patch_id.str[11:17].isin(["201706", "201707", "201708"])]
    want = [
        i for i, labels in zip(rows.patch_id, rows.labels, strict=True) if "Agro-forestry areas" in labels
    ]
    assert len(found) == len(want) == 3158
    assert sorted(found.patch_ids) == sorted(want)
    assert found.official().column("patch_id").to_pylist() == sorted(want)


@pytest.mark.slow
def test_every_split_and_flag_has_its_published_count(everything):
    assert len(everything.search()) == 549_488
    assert len(everything.search(recommended=True)) == 480_038
    assert len(everything.search(snow=True)) == 60_773
    assert len(everything.search(cloud=True)) == 8_677
    assert len(everything.search(split="validation", recommended=True)) == 122_342
    assert len(everything.search(season="spring")) == 177_865
    assert len(everything.search(labels_all=["Arable land", "Pastures"], split=["test"])) == sum(
        {"Arable land", "Pastures"} <= set(labels)
        for labels in everything.search(split="test").column("reben:labels").to_pylist()
    )


longitudes, latitudes = st.floats(-12, 34), st.floats(35, 70)
times = st.datetimes(datetime(2017, 5, 1), datetime(2018, 7, 1), timezones=st.just(UTC))


@pytest.mark.slow
@given(
    x=st.tuples(longitudes, longitudes),
    y=st.tuples(latitudes, latitudes),
    when=st.tuples(times, times),
    open_end=st.sampled_from(["none", "start", "end"]),
)
def test_boxes_and_intervals_find_what_brute_force_finds(everything, frame, x, y, when, open_end):
    box = (min(x), min(y), max(x), max(y))
    start, end = sorted(when)
    interval = (None if open_end == "start" else start, None if open_end == "end" else end)

    found = set(everything.search(bbox=box, datetime=interval).patch_ids)

    # A search by box looks at the patches' own boxes, as STAC has it.
    mask = shapely.intersects(shapely.box(*frame.geometry.bounds.to_numpy().T), shapely.box(*box))
    if interval[0] is not None:
        mask &= frame.datetime >= start
    if interval[1] is not None:
        mask &= frame.datetime <= end
    want = frame[mask]
    assert found & set(frame.patch_id) == set(want.patch_id)


@pytest.mark.slow
@given(points=st.lists(st.tuples(st.floats(13.0, 16.5), st.floats(46.9, 49.1)), min_size=3, max_size=7))
def test_polygons_find_what_shapely_finds(everything, frame, points):
    polygon = shapely.convex_hull(shapely.MultiPoint(points))
    if polygon.is_empty:
        return

    found = set(everything.search(intersects=polygon).patch_ids)

    assert found & set(frame.patch_id) == set(frame.patch_id[frame.geometry.intersects(polygon)])


def test_a_box_and_a_shape_need_not_meet_inside_a_patch(everything):
    patch_id = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
    one = everything.search(ids=[patch_id]).to_geopandas().iloc[0]
    west, south, east, north = one.geometry.bounds
    beside = shapely.box(east - 1e-4, south, east + 0.1, north)

    found = everything.search(bbox=(west - 0.1, south, west + 1e-4, north), intersects=beside)

    assert patch_id in found.patch_ids


def test_a_patchs_own_edges_and_instant_find_it(everything):
    patch_id = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
    one = everything.search(ids=[patch_id]).to_geopandas().iloc[0]
    west, south, east, north = one.geometry.bounds

    for box in ((east, south, east + 1, north), (west - 1, north, west, north + 1)):
        assert patch_id in everything.search(bbox=box, datetime="2017-06-13T10:10:31Z").patch_ids
    assert patch_id not in everything.search(datetime="2017-06-13T10:10:32Z/..").patch_ids
    assert patch_id in everything.search(datetime="../2017-06-13T10:10:31Z").patch_ids
    assert patch_id in everything.search(datetime="2017-06-13T12:10:31+02:00").patch_ids


@pytest.mark.slow
def test_sorting_and_limits(everything):
    newest = everything.search(split="test", sortby="-datetime", limit=5)
    frame = everything.search(split="test").to_pandas()

    assert newest.to_pandas().datetime.tolist() == sorted(frame.datetime, reverse=True)[:5]


def test_cql2_text_and_json_agree_with_arguments(everything):
    pytest.importorskip("cql2")
    text = "\"reben:split\" = 'test' AND \"reben:country\" IN ('Ireland', 'Kosovo')"
    json = {"op": "=", "args": [{"property": "reben:country"}, "Kosovo"]}

    assert sorted(everything.search(bbox=(-11, 51, 22, 56), cql2=text).patch_ids) == sorted(
        everything.search(bbox=(-11, 51, 22, 56), split="test", country=["Ireland", "Kosovo"]).patch_ids
    )
    assert len(everything.search(bbox=(19, 41, 23, 44), cql2=json)) == len(
        everything.search(bbox=(19, 41, 23, 44), country="Kosovo")
    )


@pytest.mark.parametrize(
    "box", [(20, 35, -20, 70), (178, -90, -8, 90), (31.5, 40, -9, 80), (179, 0, -179, 1)]
)
def test_a_box_over_the_antimeridian_is_what_its_two_halves_are(everything, box):
    west, south, east, north = box
    halves = [(west, south, 180, north), (-180, south, east, north)]
    both = shapely.union_all([shapely.box(*half) for half in halves])
    want = np.union1d(*(everything.search(bbox=half).rows for half in halves)).tolist()

    assert everything.search(bbox=box).rows.tolist() == want
    assert everything.search(intersects=both).rows.tolist() == want
    filtered = {"op": "s_intersects", "args": [{"property": "geometry"}, {"bbox": [*box]}]}
    assert everything.search(cql2=filtered).rows.tolist() == want


def test_an_empty_box_over_the_antimeridian_says_so(everything):
    with pytest.raises(NotFoundError, match="over the antimeridian, as its west is east of its east"):
        everything.search(bbox=(10, 70, 5, 71)).require_patches("nothing")


@pytest.fixture(scope="module")
def squares(everything):
    """Every 997th row, as a filter reads it."""
    found = everything.search()
    return found.columns(["id", "bbox", "geometry"]).take(np.arange(0, len(found), 997))


@pytest.mark.parametrize("op", sorted(SPATIAL))
def test_spatial_operators_with_boxes_first_are_shapelys_on_every_square(squares, op):
    shapes = shapely.from_wkb(squares.column("geometry").to_numpy())
    relates = getattr(shapely, op.removeprefix("s_"))
    for text in ("POLYGON ((10 44, 26 52, 14 66, 10 44))", "LINESTRING (-9 38, 28 66)", shapes[11].wkt):
        shape = shapely.from_wkt(text)
        left, right = f"{op.upper()}(geometry, {text})", f"{op.upper()}({text}, geometry)"

        found = {where: cql.evaluate(cql.parse(where), squares) for where in (left, right, f"NOT {left}")}

        assert found[left].tolist() == relates(shapes, shape).tolist()
        assert found[right].tolist() == relates(shape, shapes).tolist()
        assert found[f"NOT {left}"].tolist() == (~relates(shapes, shape)).tolist()
        alone = cql.evaluate(cql.parse(left), squares.select(["id", "geometry"]))
        assert alone.tolist() == found[left].tolist()


class EnoughError(Exception):
    """What a caller raises who has waited long enough."""


@pytest.mark.parametrize(
    "query",
    [
        pytest.param({"intersects": ZIGZAG}, id="intersects"),
        pytest.param({"cql2": f"S_INTERSECTS(geometry, {ZIGZAG})"}, id="filter"),
        pytest.param({"cql2": f"NOT S_WITHIN(geometry, {ZIGZAG})"}, id="not"),
        pytest.param({"cql2": " OR ".join(f"accenti(casei(id)) = '{n}'" for n in range(40))}, id="operators"),
        pytest.param(
            {"cql2": f"datetime IN ({', '.join(['TIMESTAMP(' + repr('2017-06-13T10:10:31Z') + ')'] * 200)})"},
            id="in",
        ),
    ],
)
def test_a_search_is_ended_between_its_pieces(everything, query):
    calls = []

    def enough():
        calls.append(1)
        if len(calls) > 3:
            raise EnoughError

    with pytest.raises(EnoughError):
        find_rows(everything, Query(**query), between=enough)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        pytest.param({"labels": "Arable lands"}, "did you mean 'Arable land'", id="label"),
        pytest.param({"split": "val"}, "unknown split 'val'", id="split"),
        pytest.param({"country": "Finnland"}, "did you mean 'Finland'", id="country"),
        pytest.param({"bbox": (0, 0, 1)}, "west,south,east,north", id="three numbers"),
        pytest.param({"bbox": (0, 50, 1, 91)}, r"\[-90, 90\]", id="beyond the pole"),
        pytest.param({"bbox": (0, 50, float("nan"), 60)}, "must be in", id="nan"),
        pytest.param({"bbox": "0,nan,1,60"}, "finite degrees, got 0.0, nan", id="nan for a latitude"),
        pytest.param({"bbox": "0,50,inf,60"}, "finite degrees", id="a box without end"),
        pytest.param({"datetime": "2018/2017"}, "ends before it starts", id="backwards"),
        pytest.param({"datetime": "../.."}, "open at both ends", id="open"),
        pytest.param({"datetime": "June 2017"}, "no RFC 3339 time", id="words"),
        pytest.param(
            {"intersects": "POLYGON((0 0, 1 1, 0 1, 1 0, 0 0))"}, "not a valid geometry", id="bow tie"
        ),
        pytest.param({"intersects": "circle"}, "neither GeoJSON nor WKT", id="no geometry"),
        pytest.param({"sortby": "height"}, "unknown sortby column 'height'", id="sort"),
        pytest.param({"limit": 0}, "at least 1", id="limit"),
        pytest.param({"cql2": "no such ("}, "cannot be", id="cql2"),
        pytest.param({"country": ""}, "unknown country ''", id="empty text"),
        pytest.param({"country": "finnland"}, "did you mean 'Finland'", id="misspelled"),
        pytest.param(
            {"labels": "lava"}, "known are\n  Agro-forestry areas\n  Arable land\n", id="a label per line"
        ),
        pytest.param({"product": "S2A"}, "unknown product 'S2A'", id="product"),
        pytest.param({"season": "autumn"}, "unknown season 'autumn'; known are spring", id="season"),
        pytest.param({"split": []}, "split is an empty list", id="no split"),
        pytest.param({"labels_all": ()}, "labels_all is an empty list", id="no labels"),
        pytest.param({"bbox": "a,b,c,d"}, "west,south,east,north in degrees", id="words for a box"),
        pytest.param({"bbox": ""}, "west,south,east,north in degrees", id="empty box"),
        pytest.param({"bbox": (8, 50, 9, None)}, "west,south,east,north in degrees", id="None in a box"),
        pytest.param({"bbox": (8, 51, 9, 50)}, "latitudes must rise", id="box upside down"),
        pytest.param({"datetime": ""}, "leave it out", id="empty time"),
        pytest.param({"datetime": "20170613"}, "such as 2017-06-13T", id="time without hyphens"),
        pytest.param({"datetime": pd.NaT}, "'NaT' is no RFC 3339", id="not a time"),
        pytest.param({"datetime": ("2017", "2018", "2019")}, "an instant or A/B", id="three times"),
        pytest.param(
            {"s1_datetime": (date(2018, 1, 2), date(2018, 1, 1))}, "s1_datetime .* before", id="dates"
        ),
        pytest.param({"sortby": "labels"}, "holds several values", id="sort by a list"),
        pytest.param({"sortby": "-"}, "unknown sortby column ''", id="sort by nothing"),
        pytest.param({"sortby": "-contry"}, "did you mean 'reben:country'", id="sort by a misspelling"),
        pytest.param({"limit": -3}, "at least 1", id="negative limit"),
        pytest.param({"sample": 0}, "sample must be at least 1, got 0; leave it out", id="no sample"),
        pytest.param({"sample": 5, "sample_seed": -1}, "sample_seed must be at least 0, got -1", id="seed"),
        pytest.param({"sample_seed": 1}, "sample_seed says how .* give sample=N too", id="seed of nothing"),
        pytest.param({"balance": "label"}, "balance says how .* give sample=N too", id="balance of nothing"),
        pytest.param({"min_distance_m": 5}, "min_distance_m says how .* sample=N", id="distance of nothing"),
        pytest.param({"sample": 5, "balance": "labels"}, "did you mean 'label'", id="balance"),
        pytest.param({"sample": 5, "min_distance_m": 0}, "must be above 0 metres", id="no distance"),
        pytest.param({"sample": 5, "min_distance_m": -3.5}, "finite, got -3.5; leave", id="distance"),
        pytest.param({"sample": 5, "min_distance_m": float("nan")}, "finite, got nan", id="no number"),
        pytest.param({"sample": 5, "limit": 5}, "first patches .* give one of them", id="head and sample"),
        pytest.param({"share": 0}, r"part of \[0, 1\] .* got 0", id="an empty share"),
        pytest.param({"share": "0.5/0.25"}, "got '0.5/0.25'", id="a share backwards"),
        pytest.param({"share": (0, 0.5, 1)}, "got \\(0, 0.5, 1\\)", id="three ends"),
        pytest.param({"share": "a tenth"}, "got 'a tenth'", id="words for a share"),
        pytest.param({"ids_order": True}, "ids, which are not given", id="order of nothing"),
        pytest.param({"ids_order": True, "ids": [], "sortby": "id"}, "give one of them", id="two orders"),
    ],
)
def test_wrong_queries_say_what_is_wrong(everything, query, message):
    with pytest.raises(ValueError, match=message):
        everything.search(**query)


@pytest.mark.parametrize(
    "query",
    [
        pytest.param({"snow": "no"}, id="a word for a flag"),
        pytest.param({"recommended": "False"}, id="a text for a flag"),
        pytest.param({"cloud": 2}, id="a number for a flag"),
        pytest.param({"split": 1}, id="a number for a name"),
        pytest.param({"labels": ["Pastures", None]}, id="None among names"),
        pytest.param({"ids": b"S2A"}, id="bytes for an id"),
        pytest.param({"datetime": 2017}, id="a number for a time"),
        pytest.param({"bbox": shapely.box(8, 50, 9, 51)}, id="a geometry for a box"),
        pytest.param({"intersects": 5}, id="a number for a geometry"),
        pytest.param({"missing_ok": "no", "ids": "S2A"}, id="a word for leaving out"),
        pytest.param({"limit": "5"}, id="a text for a limit"),
        pytest.param({"limit": 2.0}, id="a float for a limit"),
        pytest.param({"limit": True}, id="a flag for a limit"),
        pytest.param({"sample": "5"}, id="a text for a sample"),
        pytest.param({"sample_seed": 1.5, "sample": 5}, id="a float for a seed"),
        pytest.param({"balance": 3, "sample": 5}, id="a number for a balance"),
        pytest.param({"min_distance_m": "5 km", "sample": 5}, id="a text for a distance"),
        pytest.param({"min_distance_m": True, "sample": 5}, id="a flag for a distance"),
        pytest.param({"ids_order": 1, "ids": []}, id="a number for an order"),
        pytest.param({"share": True}, id="a flag for a share"),
        pytest.param({"share": (None, 0.5)}, id="None in a share"),
    ],
)
def test_arguments_of_another_type_are_named(everything, query):
    with pytest.raises(TypeError, match=next(iter(query))):
        everything.search(**query)


def test_shares_are_nested_and_add_up(everything):
    parts = [everything.search(share=(at / 10, (at + 1) / 10)).rows for at in range(10)]
    nested = [set(everything.search(share=end).rows) for end in (0.1, 0.2, 1)]
    few = everything.search(share=0.1, split="test").patch_ids

    assert sorted(np.concatenate(parts)) == everything.search().rows.tolist()
    assert all(0.6 < len(part) / (len(everything) / 10) < 1.5 for part in parts)
    assert nested[0] == set(parts[0]) < nested[1] < nested[2]
    assert everything.search(share="0/0.1", split="test").patch_ids == few


def test_another_seed_is_another_share_and_a_sample_is_of_its_beginning(everything):
    first, other = (everything.search(share=0.2, sample_seed=seed) for seed in (0, 1))

    assert first.patch_ids == everything.search(share=0.2).patch_ids
    assert set(first.patch_ids) != set(other.patch_ids)
    assert set(everything.search(sample=5, sample_seed=1).patch_ids) < set(other.patch_ids)


@pytest.mark.parametrize(
    ("query", "same"),
    [
        pytest.param({"labels_all": "Pastures"}, {"labels": ["Pastures"]}, id="one text is one label"),
        pytest.param({"split": {"test"}}, {"split": "test"}, id="a set of splits"),
        pytest.param({"country": pd.Series(["Kosovo"])}, {"country": "Kosovo"}, id="a column of pandas"),
        pytest.param({"snow": np.True_}, {"snow": True}, id="NumPy's flag"),
        pytest.param({"datetime": date(2017, 6, 13)}, {"datetime": "2017-06-13"}, id="a date is a day"),
        pytest.param({"datetime": np.datetime64("2017-06")}, {"datetime": "2017-06"}, id="NumPy's month"),
        pytest.param(
            {"datetime": (pd.Timestamp("2018-02-01"), None)}, {"datetime": "2018-02-01/.."}, id="pandas"
        ),
        pytest.param({"bbox": "8,45,10,48"}, {"bbox": np.array([8, 45, 10, 48])}, id="a box as text"),
        pytest.param({"bbox": (8, 45, 0, 10, 48, 900)}, {"bbox": (8, 45, 10, 48)}, id="a box with heights"),
        pytest.param({"split": "test", "limit": np.int64(7)}, {"split": "test", "limit": 7}, id="NumPy's 7"),
    ],
)
def test_what_means_the_same_finds_the_same(everything, query, same):
    found = everything.search(**query).rows

    assert len(found)
    np.testing.assert_array_equal(found, everything.search(**same).rows)


def test_ids_that_are_not_there_are_named(everything):
    here = everything.search(limit=1).patch_ids[0]
    gone = [here[:-5] + "99_99", "S2A"]

    assert everything.search(ids=here).patch_ids == [here]
    assert len(everything.search(ids=[])) == 0
    assert (
        len(everything.search(ids=here, split="train")) + len(everything.search(ids=here, split="test")) <= 1
    )
    with pytest.raises(NotFoundError, match="99_99', 'S2A'; search"):
        everything.search(ids=[gone[0], here, gone[1]])
    assert everything.search(ids=[*gone, here], missing_ok=True).patch_ids == [here]


def test_equal_keys_keep_the_order_of_the_table(everything):
    rows = everything.search(country="Kosovo", sortby=["-split", "contains_seasonal_snow"]).rows

    frame = everything.search(country="Kosovo").to_pandas()
    frame["row"] = everything.search(country="Kosovo").rows
    frame["split"] = frame.split.astype(str)
    want = frame.sort_values(
        ["split", "contains_seasonal_snow", "row"], ascending=[False, True, True]
    ).row.tolist()
    assert rows.tolist() == want


def test_partial_dates_mean_all_of_it():
    assert parse_interval("2017-06") == (
        datetime(2017, 6, 1, tzinfo=UTC),
        datetime(2017, 7, 1, tzinfo=UTC) - timedelta(microseconds=1),
    )
    assert parse_interval("2017-12-31/..")[0] == datetime(2017, 12, 31, tzinfo=UTC)
    assert parse_interval("2016/2017")[1] == datetime(2018, 1, 1, tzinfo=UTC) - timedelta(microseconds=1)
    assert parse_interval("2016-02")[1] == datetime(2016, 3, 1, tzinfo=UTC) - timedelta(microseconds=1)
    for end in ("9999", "9999-12", "9999-12-31"):  # has no next day
        assert parse_interval(f"2017/{end}")[1] == datetime.max.replace(tzinfo=UTC)


def test_footprints_of_all_rows_contain_their_utm_corners(everything):
    frame = everything.search(bbox=(13, 47, 14, 48)).to_geopandas().iloc[::50]
    for row in frame.itertuples():
        epsg, minx, miny, maxx, maxy = grid.footprint(row.patch_id)
        assert frame.loc[[row.Index]].to_crs(epsg).total_bounds == pytest.approx(
            (minx, miny, maxx, maxy), abs=0.05
        )


@pytest.mark.s3
def test_a_small_search_over_s3_reads_little(everything, s3_bucket):
    """At most 12 requests and a tenth of the file for a box of a few kilometres and two months."""
    data = bytes(everything.store.get("patches.parquet"))
    store = open_store(s3_bucket.url, s3_bucket.storage_options)
    store.put("patches.parquet", data)
    seen: list[int] = []
    get_range, get_ranges = type(store).get_range, type(store).get_ranges
    store.get_range = lambda path, start, length: seen.append(length) or get_range(store, path, start, length)
    store.get_ranges = lambda path, starts, lengths: (
        seen.extend(lengths) or get_ranges(store, path, starts, lengths)
    )
    remote = Dataset(store, everything.manifest)
    query = {"bbox": (-8.5, 38.0, -8.3, 38.3), "datetime": "2017-06/2017-08"}

    found = remote.search(**query).patch_ids

    assert found == everything.search(**query).patch_ids
    assert len(seen) + 1 <= 12  # and one HEAD
    assert sum(seen) <= len(data) / 10


def test_a_selection_describes_itself(everything):
    selection = everything.search(country="Kosovo", recommended=True)

    assert selection.statistics["countries"] == {"Kosovo": 1616}
    assert sum(selection.statistics["splits"].values()) == len(selection) == 1616
    assert "1,616 patches" in selection._repr_html_()
    axes = selection.plot()
    assert len(axes.collections) == 3
    empty = everything.search(ids=[])
    assert not empty.plot().collections
    assert empty._repr_html_().startswith("<b>0 patches</b>")
    assert axes.patches, "land below the patches"
    assert axes.get_ylim()[0] < 42.6 < axes.get_ylim()[1] < 45, "as near as the patches are"
    labels = selection.to_pandas().labels
    assert np.mean([len(names) for names in labels]) > 1


@pytest.mark.parametrize(("package", "use"), [("geopandas", "to_geopandas"), ("matplotlib.pyplot", "plot")])
def test_what_needs_an_extra_says_which(package, use, everything, monkeypatch):
    monkeypatch.delitem(sys.modules, "reben_cloud.views.plots", raising=False)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingExtraError, match=r"comes with: pip install 'reben-cloud\[geo\]'"):
        getattr(everything.search(limit=1), use)()


def shown(html):
    """Rows of the tables of a card, and the places of the dots on its map, degrees apart at most."""
    tree = ElementTree.fromstring(
        f"<div>{html.replace('<br>', '')}</div>".replace("colspan=2", "colspan='2'")
    )
    rows = {tuple(cell.text for cell in row.iter("td")) for row in tree.iter("tr")}
    (picture,) = tree.iter("svg")
    width, height = (float(picture.get(name)) for name in ("width", "height"))
    land, dots = picture.iter("path"), list(picture.iter("rect"))
    assert all(0 <= float(d.get("x")) < width and 0 <= float(d.get("y")) < height for d in dots)
    return rows, len(list(land)), len(dots)


def test_notebooks_see_a_map_and_counts(everything):
    rows, num_land, num_dots = shown(everything._repr_html_())
    assert ("train", f"{len(everything.search(split='train')):,}") in rows
    assert ("Finland", f"{len(everything.search(country='Finland')):,}") in rows
    assert (num_land, num_dots) > (30, 100)

    one = everything.search(country="Kosovo", limit=1)
    rows, num_land, num_dots = shown(one._repr_html_())
    assert ("Kosovo", "1") in rows
    assert num_land >= 2, "the map reaches beyond the patch"
    assert num_dots == 1


def test_names_are_taken_in_any_case(everything):
    exact = everything.search(country="Finland", labels=["Coniferous forest"], split="train", season="summer")
    loose = everything.search(country="FINLAND", labels=["coniferous Forest"], split="Train", season="Summer")

    assert np.array_equal(exact.rows, loose.rows)
    assert len(exact)
