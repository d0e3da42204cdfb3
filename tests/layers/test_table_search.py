"""Searches by what table layers say: fields of patches, and rows of which a patch has many."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reben_cloud as rc
from reben_cloud.search import fitting
from tests.layers.data import NUM_PATCHES

pytest.importorskip("cql2")

TYPES = ("binary", "mcq", "captioning")


@pytest.fixture(scope="module")
def climate(root):
    """A row for two of three patches."""
    ids = [i for number, i in enumerate(rc.open(root).selection.patch_ids) if number % 3]
    number = np.arange(len(ids))
    return pd.DataFrame(
        {
            "patch_id": ids,
            "zone": number % 5,
            "wind-u_s2": np.where(number == 3, np.nan, number - 20.5),
            "when": pd.Timestamp("2017-06-13 10:10:31", tz="UTC") + pd.to_timedelta(number, "D"),
            "vector": [[n, n + 1.0] for n in number.tolist()],
        }
    )


@pytest.fixture(scope="module")
def texts(root):
    """0 to 6 texts for each patch."""
    ds = rc.open(root)
    table = ds.selection.columns(["id", "reben:split"]).to_pandas()
    counts = np.arange(NUM_PATCHES) % 7
    frame = pd.DataFrame(
        {"patch_id": np.repeat(table.id, counts), "of": np.repeat(table["reben:split"].astype(str), counts)}
    )
    frame["ID"] = np.arange(len(frame))
    frame["type"] = [TYPES[n * n % 7 % 3] for n in frame.ID]
    frame["length"] = [None if n % 11 == 0 else n * 37 % 100 for n in frame.ID]
    return frame.reset_index(drop=True)


@pytest.fixture(scope="module")
def ds(root, climate, texts, tmp_path_factory):
    folder, bare = tmp_path_factory.mktemp("layers"), rc.open(root)
    rc.write_table(folder / "climate", bare, name="climate", table=climate)
    for name in ("txt", "qa"):
        rc.write_table(folder / name, bare, name=name, table=texts)
    return rc.open(root, layers=[folder / "climate", folder / "txt", folder / "qa"])


def in_order(ds, wanted):
    wanted = set(wanted)
    return [i for i in ds.selection.patch_ids if i in wanted]


def test_patches_without_are_left_out(ds, climate, texts):
    assert ds.search(has="climate").patch_ids == in_order(ds, climate.patch_id)
    both = set(climate.patch_id) & set(texts.patch_id)
    assert ds.search(has=["climate", "txt"]).patch_ids == in_order(ds, both)
    assert ds.search(has="txt", limit=3).patch_ids == in_order(ds, texts.patch_id)[:3]


def test_layers_that_are_not_there_are_no_condition(ds, root):
    with pytest.raises(ValueError, match=r"unknown layer \(has\) 'climat'; did you mean 'climate'"):
        ds.search(has="climat")
    with pytest.raises(ValueError, match="was opened without"):
        rc.open(root).search(has="climate")


@pytest.mark.parametrize(
    ("cql2", "fits"),
    [
        ('"climate:zone" = 3', lambda one: one.zone == 3),
        (
            '"climate:zone" > 1 AND "climate:wind-u_s2" < 0',
            lambda one: (one.zone > 1) & (one["wind-u_s2"] < 0),
        ),
        ('NOT "climate:zone" = 3', lambda one: one.zone != 3),
        ('"climate:zone" IN (1, 2)', lambda one: one.zone.isin([1, 2])),
        (
            "\"climate:when\" < DATE('2017-06-20')",
            lambda one: one.when < pd.Timestamp("2017-06-20", tz="UTC"),
        ),
        ('"climate:present"', lambda one: one.zone.notna()),
    ],
)
def test_a_filter_names_columns_of_a_layer(cql2, fits, ds, climate):
    assert ds.search(cql2=cql2).patch_ids == in_order(ds, climate.patch_id[fits(climate)])


def test_what_a_layer_lacks_is_null(ds, climate):
    found = ds.search(cql2='"climate:zone" IS NULL').patch_ids

    assert found == [i for i in ds.selection.patch_ids if i not in set(climate.patch_id)]
    assert found == ds.search(cql2='NOT "climate:present"').patch_ids


def test_a_search_sorts_by_a_column_of_a_layer(ds, climate):
    found = ds.search(has="climate", sortby=["-climate:zone", "climate:when"]).patch_ids

    expected = climate.sort_values(["zone", "when"], ascending=[False, True])
    assert found == expected.patch_id.tolist()
    with pytest.raises(ValueError, match="cannot sort by 'climate:vector': it holds several values"):
        ds.search(sortby="climate:vector")
    with pytest.raises(ValueError, match="cannot sort by 'txt:ID': a patch has several rows"):
        ds.search(sortby="txt:ID")


def test_pandas_and_items_show_what_layers_say(ds, climate):
    frame = ds.search(has="climate").to_pandas()

    np.testing.assert_array_equal(frame["climate:zone"], climate.zone)
    assert frame["climate:present"].all()
    items = list(ds.search(has="climate").items())
    assert [item.properties["climate:zone"] for item in items] == climate.zone.tolist()
    assert [item.properties.get("climate:wind-u_s2") for item in items] == [
        None if np.isnan(value) else value for value in climate["wind-u_s2"]
    ]
    assert items[0].properties["climate:when"] == "2017-06-13T10:10:31Z"
    json.dumps([item.to_dict() for item in items], allow_nan=False)
    assert "climate:zone" not in next(ds.search(ids=ds.selection.patch_ids[:1]).items()).properties


@pytest.mark.parametrize("name", ["climat:zone", "climate:zoen", "txt:tipe"])
def test_unknown_columns_come_with_the_nearest(name, ds):
    near = {"climat:zone": "climate:zone", "climate:zoen": "climate:zone", "txt:tipe": "txt:type"}[name]

    with pytest.raises(ValueError, match=f"'{name}', which no Item has; did you mean .*'{near}'"):
        ds.search(cql2=f'"{name}" = 1')


CONDITIONS = {
    "\"txt:type\" = 'mcq'": lambda t: t["type"] == "mcq",
    '"txt:length" > 50': lambda t: t["length"] > 50,
    '"txt:length" IS NULL': lambda t: t["length"].isna(),
    "\"txt:type\" <> 'captioning'": lambda t: t["type"] != "captioning",
    "split = 'train'": lambda t: t["of"] == "train",
    '"txt:ID" IN (3, 30, 90)': lambda t: t["ID"].isin([3, 30, 90]),
}


@given(
    chosen=st.lists(st.sampled_from(sorted(CONDITIONS)), min_size=1, max_size=3),
    at_once=st.sampled_from([1, 9999]),
)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_patch_is_found_when_the_whole_filter_holds_for_one_of_its_rows(
    chosen, at_once, ds, texts, monkeypatch
):
    monkeypatch.setattr(fitting, "_AT_ONCE_ROWS", at_once)
    holds = np.logical_and.reduce([CONDITIONS[one](texts) for one in chosen])
    if not any("txt:" in one for one in chosen):
        return

    found = ds.search(cql2=" AND ".join(f"({one})" for one in chosen), has="climate")

    with_climate = set(ds.search(has="climate").patch_ids)
    assert found.patch_ids == in_order(ds, set(texts.patch_id[holds]) & with_climate)


def test_a_filter_is_for_rows_of_one_layer(ds):
    with pytest.raises(ValueError, match="columns of qa and txt, which have several rows for each patch"):
        ds.search(cql2="\"txt:type\" = 'mcq' AND \"qa:type\" = 'mcq'")


@pytest.mark.parametrize(
    ("where", "fits"),
    [
        (None, lambda t: t.ID >= 0),
        ("type = 'captioning'", lambda t: t["type"] == "captioning"),
        ("\"txt:type\" = 'mcq' AND split = 'train'", lambda t: (t["type"] == "mcq") & (t.of == "train")),
        ({"op": ">", "args": [{"property": "length"}, 40]}, lambda t: t["length"] > 40),
        ("1 = 1", lambda t: t.ID >= 0),
    ],
)
def test_the_rows_of_each_patch_of_a_selection(where, fits, ds, texts):
    selection = ds.search(sortby="-datetime", limit=40)

    found = selection.with_rows("txt", where=where)

    numbers = ds.layers["txt"].rows.read([0], ["ID"]).column(0).to_pylist()
    wanted = texts[fits(texts)]
    [drawn] = found.drawn
    assert found.patch_ids == [i for i in selection.patch_ids if i in set(wanted.patch_id)]
    for number, patch_id in enumerate(found.patch_ids):
        rows = drawn.numbers[drawn.offsets[number] : drawn.offsets[number + 1]].tolist()
        assert [numbers[row] for row in rows] == wanted.ID[wanted.patch_id == patch_id].tolist()


def test_rows_are_chosen_by_columns_of_one_layer(ds):
    with pytest.raises(ValueError, match="where= is for rows of 'txt', and names columns of qa"):
        ds.selection.with_rows("txt", where="\"qa:type\" = 'mcq'")


def test_only_the_columns_that_a_filter_names_are_read(ds, monkeypatch):
    read = []
    table = ds.layers["txt"].rows
    read_once = type(table).read_once
    monkeypatch.setattr(
        type(table),
        "read_once",
        lambda self, groups, names: read.extend(names) or read_once(self, groups, names),
    )

    ds.search(cql2="\"txt:type\" = 'captioning'")

    assert read == ["type"]
    assert (0, "type") not in table._columns


def test_a_filter_may_name_the_columns_of_layers_in_the_api(ds):
    pytest.importorskip("stac_fastapi.api")
    from reben_cloud.serve.queryables import queryables

    found = queryables(ds)

    assert found["climate:zone"] == {"title": "climate: zone", "type": "integer"}
    assert found["climate:present"]["type"] == "boolean"
    assert found["txt:type"]["type"] == "string"
    assert "climate:vector" not in found
