"""The invented BigEarthNet.txt has the real one's columns, proportions and forms."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.official import read_official
from reben_cloud.bigearthnet.texts import parse_box, parse_choice, parse_point, parse_reference
from tests import bigearthnet_txt
from tests.official import table_of


@pytest.fixture(scope="module")
def official(official_files):
    return read_official(official_files[:1])


@pytest.fixture(scope="module")
def path(official, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.parquet"
    bigearthnet_txt.write_texts(path, official, num_patches=4000, rows_per_group=20_000)
    return path


@pytest.fixture(scope="module")
def texts(path):
    return pq.read_table(path)


def counts_of(column):
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}


def test_columns_and_proportions_are_the_real_ones(path, texts):
    share = 4000 / bigearthnet_txt.NUM_PATCHES

    assert texts.schema.equals(bigearthnet_txt.SCHEMA)
    assert len(texts.column_names) == 13
    assert not any(column.null_count for column in texts.columns)
    for column, wanted in (("type", bigearthnet_txt.NUM_OF_TYPE), ("split", bigearthnet_txt.NUM_ROWS)):
        found = counts_of(texts[column])
        assert found.keys() == wanted.keys()
        for name, number in wanted.items():
            assert found[name] == pytest.approx(number * share, rel=0.12 if name == "bench" else 0.005)
    rows = counts_of(texts["patch_id"])
    assert len(rows) == pytest.approx(4000, abs=2)
    assert (min(rows.values()), max(rows.values())) == (1, 67)
    assert np.median(list(rows.values())) == 21
    assert pq.ParquetFile(path).num_row_groups >= 4
    assert texts["ID"].to_pylist() == list(range(len(texts)))


def test_rows_are_sorted_by_patch_and_say_what_the_metadata_say(texts, official):
    ids = texts["patch_id"].to_pylist()
    assert ids == sorted(ids)
    rows = pc.index_in(texts["patch_id"], official["patch_id"].combine_chunks())
    for column in ("s1_name", "country"):
        assert texts[column].equals(official[column].take(rows))
    split = official["split"].take(rows)
    same = pc.equal(texts["split"], split)
    bench = pc.equal(texts["split"], "bench")
    assert pc.all(pc.xor(same, bench)).as_py()
    assert pc.unique(split.filter(bench)).to_pylist() == ["test"]
    squares = grid.footprints(ids[::500])
    from pyproj import Transformer

    for epsg, minx, miny, lon, lat in zip(
        *squares[:3], texts["longitude"].to_pylist()[::500], texts["latitude"].to_pylist()[::500], strict=True
    ):
        east, north = Transformer.from_crs(4326, int(epsg), always_xy=True).transform(lon, lat)
        assert (east, north) == pytest.approx((minx + 600, miny + 600), abs=1e-3)


@pytest.mark.slow
def test_every_text_has_the_form_of_its_type(texts):
    seen = {}
    for row in texts.to_pylist():
        seen.setdefault(row["type"], set()).add(row["category"])
        asked, answer = row["input"], row["output"]
        match row["type"]:
            case "binary":
                assert answer in ("yes", "no")
            case "mcq":
                choice = parse_choice(asked)
                assert list(choice.options) == list("abcd")
                told = {"country": "country", "season": "season", "climate zone": "climate_zone"}.get(
                    row["category"]
                )
                if told:
                    assert choice.options[answer] == row[told]
            case "bounding box":
                box = parse_box(answer)
                if row["category"] == "point":
                    point = parse_point(asked)
                    assert box.left <= point.x <= box.right
                    assert box.top <= point.y <= box.bottom
                else:
                    assert parse_reference(asked)
            case "captioning":
                assert row["category"] == "None"
                assert all(row[name] in answer for name in ("country", "season", "climate_zone"))
    assert seen == {
        "binary": {"presence", "area", "adjacency", "relative pos"},
        "mcq": {
            "presence",
            "area",
            "count",
            "adjacency",
            "relative pos",
            "country",
            "season",
            "climate zone",
        },
        "bounding box": {"point", "reference"},
        "captioning": {"None"},
    }


def test_a_patch_has_one_caption_at_most(texts):
    captions = counts_of(texts.filter(pc.equal(texts["type"], "captioning"))["patch_id"])
    without = set(counts_of(texts["patch_id"])) - set(captions)

    assert set(captions.values()) == {1}
    splits = texts.filter(pc.is_in(texts["patch_id"], pa.array(sorted(without))))["split"]
    assert set(splits.to_pylist()) == {"bench"}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_texts(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        bigearthnet_txt.write_texts(tmp_path / name, table_of(40), seed=seed)

    a, b, c = (pq.read_table(tmp_path / name) for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)
    assert set(a["patch_id"].to_pylist()) == set(table_of(40)["patch_id"].to_pylist())


@pytest.mark.slow
def test_at_full_size_every_count_is_the_real_one(official, tmp_path):
    path = tmp_path / "texts.parquet"

    bigearthnet_txt.write_texts(path, official)

    table = pq.read_table(path, columns=["patch_id", "type", "split"])
    assert len(table) == 9_553_962
    assert counts_of(table["type"]) == bigearthnet_txt.NUM_OF_TYPE
    assert counts_of(table["split"]) == bigearthnet_txt.NUM_ROWS
    rows = list(counts_of(table["patch_id"]).values())
    assert (len(rows), min(rows), max(rows), np.median(rows)) == (464_044, 1, 67, 21)
