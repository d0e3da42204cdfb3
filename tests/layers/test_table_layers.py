"""Table layers: written from what people have, compared with merges of pandas."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import csv

import reben_cloud as rc
from reben_cloud.errors import ConflictError, NotFoundError, SourceError
from reben_cloud.layers import csv_file, sorting
from reben_cloud.layers.table_work import LEAST_ROWS, MOST_ROWS, cut_groups
from tests.layers.data import NUM_PATCHES


@pytest.fixture(scope="module")
def names(ds):
    """The names of every patch, and its place in shards, in the order of the table."""
    columns = ["id", "reben:s1_name", "reben:s2v1_name", "reben:split"]
    places = ["reben:shard_group", "reben:shard", "reben:shard_row"]
    frame = ds.selection.columns([*columns, *places]).to_pandas()
    return frame.rename(columns=lambda name: {"id": "patch_id"}.get(name, name.removeprefix("reben:")))


@pytest.fixture(scope="module")
def climate(names):
    """A row for two of three patches, in any order."""
    some = names.patch_id[names.index % 3 > 0].sample(frac=1, random_state=1)
    number = np.arange(len(some))
    return pd.DataFrame(
        {
            "patch_id": some.to_numpy(),
            "zone": number % 7,
            "name": [f"zone {n % 7}" for n in number],
            "temperature": 280.0 + number,
            "when": pd.Timestamp("2017-06-13 10:10:31") + pd.to_timedelta(number, "D"),
            "wet": number % 2 == 0,
            "vector": [np.arange(4, dtype=np.float32) + n for n in number],
        }
    )


@pytest.fixture(scope="module")
def texts(names):
    """0 to 6 texts for each patch, rows of patches mixed."""
    counts = np.arange(NUM_PATCHES) % 7
    frame = pd.DataFrame({"patch_id": np.repeat(names.patch_id, counts)}).sample(frac=1, random_state=2)
    frame["ID"] = np.arange(len(frame))
    frame["input"] = [f"What of {patch_id[-9:]}?" for patch_id in frame.patch_id]
    frame["type"] = [("binary", "mcq", "captioning")[n % 3] for n in frame.ID]
    return frame.reset_index(drop=True)


def rows_of(layer):
    groups = range(len(layer.rows.group_starts) - 1)
    return layer.rows.read(groups, layer.rows.names).to_pandas()


def in_shards(frame, names):
    """Rows in the order of the shards of their patches."""
    places = names[["patch_id", "shard_group", "shard", "shard_row"]].astype({"shard_group": str})
    merged = frame.merge(places, on="patch_id", how="left")
    merged = merged.sort_values(["shard_group", "shard", "shard_row"], kind="stable")
    return merged[list(frame.columns)].reset_index(drop=True)


def test_one_row_for_a_patch_stands_in_the_order_of_the_root(ds, names, climate, tmp_path):
    layer = rc.write_table(tmp_path / "climate", ds, name="climate", table=climate, title="Climate")

    assert layer.manifest.kind == "one"
    assert layer.manifest.coverage == layer.manifest.num_rows == len(climate)
    expected = names[["patch_id"]].merge(climate, on="patch_id")
    expected["when"] = expected["when"].dt.tz_localize("UTC").astype("datetime64[us, UTC]")
    pd.testing.assert_frame_equal(rows_of(layer), expected)
    train = names.patch_id[names.split == "train"]
    inside = climate[climate.patch_id.isin(train)]
    assert layer.manifest.statistics["temperature"] == pytest.approx(
        {
            "mean": inside.temperature.mean(),
            "std": inside.temperature.std(ddof=0),
            "min": inside.temperature.min(),
            "max": inside.temperature.max(),
            "count": len(inside),
        }
    )
    assert set(layer.manifest.statistics) == {"zone", "temperature", "vector"}


def test_its_columns_stand_beside_those_of_the_root(ds, names, climate, tmp_path):
    layer = rc.write_table(tmp_path / "climate", ds, name="climate", table=climate)

    table = ds.with_layers(layer).selection.columns(["id", "climate:zone", "climate:present"]).to_pandas()

    expected = names[["patch_id"]].merge(climate[["patch_id", "zone"]], on="patch_id", how="left")
    np.testing.assert_array_equal(table["climate:zone"].to_numpy(float), expected.zone.to_numpy(float))
    assert (table["climate:present"] == expected.zone.notna()).all()


def test_many_rows_stand_in_the_order_of_the_shards(ds, names, texts, tmp_path):
    layer = rc.write_table(tmp_path / "txt", ds, name="txt", table=texts)

    assert layer.manifest.kind == "many"
    assert layer.manifest.coverage == texts.patch_id.nunique()
    rows = rows_of(layer)
    pd.testing.assert_frame_equal(rows, in_shards(texts, names))
    index = layer.by_patch.read([0], ["patch_id", "first", "count"]).to_pandas()
    assert index.patch_id.tolist() == [i for i in names.patch_id if i in set(texts.patch_id)]
    for patch_id, first, count in index.itertuples(index=False):
        assert (rows.patch_id[first : first + count] == patch_id).all()
        assert count == (texts.patch_id == patch_id).sum()


@pytest.mark.parametrize(
    "form", ["arrow", "pandas index", "parquet", "csv", "batches", "reader", "string view"]
)
def test_a_table_may_come_in_any_form(form, ds, names, texts, tmp_path):
    arrow = pa.Table.from_pandas(texts, preserve_index=False)
    table = {
        "arrow": lambda: arrow,
        "pandas index": lambda: texts.set_index("patch_id"),
        "parquet": lambda: tmp_path / "texts.parquet",
        "csv": lambda: str(tmp_path / "texts.csv"),
        "batches": lambda: iter(arrow.to_batches(max_chunksize=7)),
        "reader": lambda: pa.RecordBatchReader.from_batches(arrow.schema, arrow.to_batches(max_chunksize=7)),
        "string view": lambda: arrow.set_column(2, "input", arrow.column("input").cast(pa.string_view())),
    }[form]()
    pq.write_table(arrow, tmp_path / "texts.parquet", row_group_size=50)
    texts.to_csv(tmp_path / "texts.csv", index=form == "csv")

    layer = rc.write_table(tmp_path / "txt", ds, name="txt", table=table)

    columns = list(texts.columns)
    pd.testing.assert_frame_equal(rows_of(layer)[columns], in_shards(texts, names))
    assert layer.rows.names == columns


@pytest.mark.parametrize("key", ["patch_id", "s1_name", "s2v1_name"])
@pytest.mark.parametrize("is_said", [False, True])
def test_every_name_of_a_patch_is_a_key(key, is_said, ds, names, tmp_path):
    # ben-ge has the names of version 1 in a column `patch_id`
    table = pd.DataFrame({"x": range(NUM_PATCHES), "patch_id": names[key]}).sample(frac=1, random_state=3)

    layer = rc.write_table(tmp_path / "x", ds, name="x", table=table, key=key if is_said else None)

    assert layer.manifest.provenance["key"] == key
    assert rows_of(layer).patch_id.tolist() == names.patch_id.tolist()
    assert rows_of(layer).x.tolist() == list(range(NUM_PATCHES))


def test_names_may_be_in_a_column_of_any_name(ds, names, tmp_path):
    table = pd.DataFrame({"note": "none", "image": names.s1_name, "x": range(NUM_PATCHES)})

    layer = rc.write_table(tmp_path / "x", ds, name="x", table=table)

    assert layer.rows.names == ["patch_id", "note", "x"]


def test_names_that_are_no_patches_are_counted(ds, names, tmp_path):
    foreign = [f"S2A_MSIL2A_20170613T94132_{n}_0" for n in range(5000)]
    table = pd.DataFrame({"patch_id": [*foreign, *names.s2v1_name], "x": range(5000 + NUM_PATCHES)})

    with pytest.raises(
        SourceError, match=r"5,000 of the 5,060 different names in column 'patch_id' are no s2v1_name"
    ):
        rc.write_table(tmp_path / "x", ds, name="x", table=table, allow_missing=4999)
    layer = rc.write_table(tmp_path / "x", ds, name="x", table=table, allow_missing=5000)

    assert rows_of(layer).x.tolist() == list(range(5000, 5000 + NUM_PATCHES))


def test_a_row_without_a_name_is_about_no_patch(ds, names, tmp_path):
    table = pa.table({"patch_id": [names.patch_id[0], None], "x": [1, 2]})

    with pytest.raises(SourceError, match=r"1 of the 2 different names .* the first is no name at all"):
        rc.write_table(tmp_path / "x", ds, name="x", table=table)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        pytest.param(
            {"x": ["a", "b"]}, {}, r"no value of 'x' names a patch \(the first of 'x' is 'a'\)", id="no key"
        ),
        pytest.param({"x": [1, 2]}, {}, "no column of strings among 'x', so", id="no strings"),
        pytest.param({"patch_id": pa.array([], pa.string())}, {}, "the table: it has no rows", id="no rows"),
        pytest.param({"patch_id": "ids", "x": "nested"}, {}, "column 'x' is of the type struct", id="nested"),
        pytest.param(
            {"patch_id": "ids", "x": "ragged"}, {}, "column 'x' has a value that is no fixed", id="ragged"
        ),
        pytest.param({"patch_id": "ids", "present": "ids"}, {}, "'present' cannot be called", id="present"),
        pytest.param({"s1_name": "s1", "patch_id": "none"}, {}, "'patch_id' cannot be called", id="patch_id"),
        pytest.param({"patch_id": "ids", "a.b": "ids"}, {}, "'a.b' cannot be called", id="dot"),
        pytest.param({"patch_id": "ids"}, {}, "no column beside 'patch_id'", id="no column"),
        pytest.param(
            {"patch_id": "twice", "x": "ids"}, {"many": False}, "1 patch has several rows", id="twice"
        ),
        pytest.param(
            {"patch_id": "ids", "x": "ids", "y": "ids"},
            {"columns": {"x": "y", "y": "y"}},
            "two columns",
            id="same name",
        ),
    ],
)
def test_what_cannot_be_a_layer_is_refused_in_one_line(table, options, message, ds, names, tmp_path):
    values = {
        "ids": names.patch_id.tolist()[:3],
        "twice": names.patch_id.tolist()[:2] + names.patch_id.tolist()[:1],
        "s1": names.s1_name.tolist()[:3],
        "none": ["no", "such", "patch"],
        "nested": [{"a": 1}] * 3,
        "ragged": [[1.0], [1.0, 2.0], [1.0]],
    }
    arrow = pa.table({name: values.get(v, v) if isinstance(v, str) else v for name, v in table.items()})

    with pytest.raises(SourceError, match=message) as caught:
        rc.write_table(tmp_path / "x", ds, name="x", table=arrow, **options)

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x" / "layer.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{patch},1\n{other},2\n", "has no header: its first line names a patch", id="no header"),
        pytest.param("patch_id;x\n{patch};1\n", "separated by ';' and not by commas", id="semicolons"),
        pytest.param("patch_id\tx\n{patch}\t1\n", "separated by '.t' and not by commas", id="tabs"),
        pytest.param("patch_id,x\n", "it has no rows", id="no rows"),
        pytest.param("patch_id,x\n{patch}.tif,1\n", r"is '\S+\.tif'\)", id="names of files"),
        pytest.param("patch_id,x\n{patch},1,2\n", "Expected 2 columns, got 3", id="ragged"),
        pytest.param("", "neither parquet nor a CSV", id="empty"),
    ],
)
def test_a_csv_that_is_no_table_says_why(ds, names, tmp_path, text, message):
    patch, other = names.patch_id[:2]
    (tmp_path / "x.csv").write_text(text.format(patch=patch, other=other))

    with pytest.raises(SourceError, match=message):
        rc.write_table(tmp_path / "x", ds, name="x", table=tmp_path / "x.csv")


def test_arguments_are_checked(ds, climate, tmp_path):
    def write(**changes):
        rc.write_table(tmp_path / "x", ds, **{"name": "x", "table": climate} | changes)

    with pytest.raises(ValueError, match="'zine'; did you mean 'zone'"):
        write(columns=["zine"])
    with pytest.raises(ValueError, match="has 's2' already"):
        write(name="s2")
    with pytest.raises(ValueError, match=r"a list of names, such as \['zone'\]"):
        write(columns="zone")
    with pytest.raises(TypeError, match=r"make one of it with pyarrow\.table"):
        write(table={"patch_id": ["a"]})
    with pytest.raises(TypeError, match=r"with pyarrow\.Table\.from_pylist"):
        write(table=[{"patch_id": "a"}])
    with pytest.raises(SourceError, match="Conversion failed for column x"):
        write(table=pd.DataFrame({"patch_id": ["a", "b"], "x": [1, "b"]}))
    with pytest.raises(ValueError, match="cannot be named 'A b'"):
        write(name="A b")
    with pytest.raises(ValueError, match="key must be one of patch_id, s1_name, s2v1_name"):
        write(key="id")
    with pytest.raises(NotFoundError, match="no such file"):
        write(table=tmp_path / "none.csv")
    with pytest.raises(TypeError, match="a table must be"):
        write(table=7)
    with pytest.raises(TypeError, match="must be record batches"):
        write(table=[{"patch_id": 1}])


def test_columns_may_be_chosen_and_renamed(ds, climate, tmp_path):
    layer = rc.write_table(
        tmp_path / "climate",
        ds,
        name="climate",
        table=climate,
        columns={"zone": "code", "wet": "present_water"},
    )

    assert layer.rows.names == ["patch_id", "code", "present_water"]


def test_a_layer_that_is_there_is_left_as_it_is(ds, climate, tmp_path):
    climate.to_csv(tmp_path / "climate.csv", index=False)
    first = rc.write_table(tmp_path / "x", ds, name="x", table=tmp_path / "climate.csv")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")}

    again = rc.write_table(tmp_path / "x", ds, name="x", table=tmp_path / "climate.csv")

    assert again.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")} == before
    with pytest.raises(ConflictError, match="other columns"):
        rc.write_table(tmp_path / "x", ds, name="x", table=tmp_path / "climate.csv", columns=["zone"])
    climate.assign(zone=1).to_csv(tmp_path / "climate.csv", index=False)
    with pytest.raises(ConflictError, match="another provenance"):
        rc.write_table(tmp_path / "x", ds, name="x", table=tmp_path / "climate.csv")


@pytest.mark.parametrize("form", ["memory", "batches"])
def test_other_rows_of_the_same_form_are_another_layer(ds, climate, tmp_path, form):
    def write(frame, rows=7):
        table = pa.Table.from_pandas(frame, preserve_index=False)
        given = table if form == "memory" else iter(table.to_batches(rows))
        return rc.write_table(tmp_path / "x", ds, name="x", table=given)

    first = write(climate)
    assert write(climate, rows=3).manifest == first.manifest
    with pytest.raises(ConflictError, match="another provenance"):
        write(climate.assign(zone=1))
    swapped = climate.assign(patch_id=climate.patch_id.to_numpy()[::-1])
    with pytest.raises(ConflictError, match="another provenance"):
        write(swapped)


def test_the_same_table_makes_the_same_bytes_through_files(ds, texts, tmp_path, monkeypatch):
    layer = rc.write_table(tmp_path / "memory", ds, name="txt", table=texts)
    monkeypatch.setattr("reben_cloud.layers.table_work.MOST_ROWS", 20)
    monkeypatch.setattr("reben_cloud.layers.table_work.LEAST_ROWS", 10)
    whole = rc.write_table(tmp_path / "groups", ds, name="txt", table=texts)
    monkeypatch.setattr(sorting, "_FILE_BYTES", 400)
    monkeypatch.setattr(sorting, "_BATCH_ROWS", 37)
    dealt = rc.write_table(tmp_path / "files", ds, name="txt", table=texts)

    assert len(whole.rows.group_starts) > 8
    assert dealt.manifest == whole.manifest
    assert (tmp_path / "files/rows.parquet").read_bytes() == (tmp_path / "groups/rows.parquet").read_bytes()
    pd.testing.assert_frame_equal(rows_of(whole), rows_of(layer))


@given(
    st.lists(st.tuples(st.integers(0, 5_000), st.booleans()), max_size=60),
)
def test_row_groups_hold_whole_patches_and_few_shards_are_cut(patches):
    counts = np.array([count for count, _ in patches], np.int64)
    begins = np.array([begin for _, begin in patches], bool)

    sizes = cut_groups(counts, begins)

    assert sum(sizes) == counts.sum()
    ends = np.cumsum(counts)
    assert set(np.cumsum(sizes).tolist()) <= set(ends.tolist())
    assert all(0 < size <= MOST_ROWS for size in sizes)
    # What ends before the least number of rows was the last, or could not take the next patch.
    for end, size in zip(np.cumsum(sizes)[:-1], sizes, strict=False):
        following = counts[np.searchsorted(ends, end, side="right")]
        assert size >= LEAST_ROWS or size + following > MOST_ROWS


@given(
    rows=st.lists(
        st.tuples(st.integers(0, NUM_PATCHES - 1), st.integers(-5, 5), st.text(max_size=3) | st.none()),
        min_size=1,
    ),
    files=st.booleans(),
)
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_table_is_what_pandas_merges(rows, files, ds, names, monkeypatch):
    monkeypatch.setattr(sorting, "_FILE_BYTES", 100 if files else 1 << 20)
    frame = pd.DataFrame(
        {
            "patch_id": [names.patch_id[row] for row, _, _ in rows],
            "x": [x for _, x, _ in rows],
            "text": pd.array([text for _, _, text in rows], dtype="str"),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        layer = rc.write_table(Path(folder) / "x", ds, name="x", table=frame, many=True)

        found = rows_of(layer)

    expected = in_shards(frame, names)
    assert found.patch_id.tolist() == expected.patch_id.tolist()
    assert found.x.tolist() == expected.x.tolist()
    assert [t if isinstance(t, str) else None for t in found.text] == [
        t if isinstance(t, str) else None for t in expected.text
    ]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REBEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "layers"


def test_a_file_is_a_layer_at_once(ds, climate, texts, cache, tmp_path):
    climate.drop(columns="vector").to_csv(tmp_path / "ben-ge_Climate.csv", index=False)
    texts.to_parquet(tmp_path / "BigEarthNet.txt.parquet")

    found = rc.open(ds.url, layers=[tmp_path / "ben-ge_Climate.csv", f"{tmp_path}/BigEarthNet.txt.parquet"])

    assert list(found.layers) == ["ben_ge_climate", "bigearthnet_txt"]
    assert found.layers["bigearthnet_txt"].manifest.num_rows == len(texts)
    assert set(found.search(has="ben_ge_climate").patch_ids) == set(climate.patch_id)


def test_a_layer_of_a_file_is_made_once_for_each_state_of_it(ds, climate, cache, tmp_path):
    file = tmp_path / "climate.parquet"
    climate.to_parquet(file)
    first = rc.open_layer(file, ds=ds)
    rows = Path(first.url.removeprefix("file://")) / "rows.parquet"
    before = rows.stat().st_mtime_ns

    again = rc.open_layer(str(file), ds=ds)
    climate.head(5).to_parquet(file)
    changed = rc.open_layer(file, ds=ds)

    assert again.url == first.url
    assert rows.stat().st_mtime_ns == before
    assert changed.url != first.url
    assert changed.manifest.num_rows == 5


def test_a_file_that_is_no_layer_as_it_is_says_what_to_do(ds, cache, tmp_path):
    (tmp_path / "x.csv").write_text("patch_id,x\nnobody,1\n")

    with pytest.raises(SourceError, match=r"the first of 'patch_id' is 'nobody'.*write_table"):
        rc.open(ds.url, layers=[tmp_path / "x.csv"])
    with pytest.raises(NotFoundError, match=r"x.csv is a file and no layer; .* \(ds=\)"):
        rc.open_layer(tmp_path / "x.csv")
    with pytest.raises(NotFoundError, match=r"has no layer\.json"):
        rc.open(ds.url, layers=[tmp_path / "none.csv"])


def test_the_types_of_a_csv_follow_from_all_its_rows_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_file, "_BLOCK_BYTES", 400)
    columns = {
        "whole": [str(number) for number in range(200)],
        "floats": ["1"] * 150 + ["1.5"] * 50,
        "late": [""] * 150 + ["7"] * 50,
        "text": ["7"] * 150 + ["seven"] * 50,
        "flag": ["true", "false"] * 100,
        "day": ["2020-01-02"] * 200,
        "time": ["2020-01-02"] * 100 + ["2020-01-02T10:00:00.25"] * 100,
        "zone": ["2020-01-02T10:00:00Z"] * 100 + ["2020-01-02T10:00:00.5Z"] * 100,
        "nothing": [""] * 200,
        "quoted": ['"Mörfelden, ""a"""'] * 200,
    }
    lines = [",".join(columns), *map(",".join, zip(*columns.values(), strict=True))]
    (tmp_path / "t.csv").write_text("\n".join(lines))

    csv_file.csv_to_parquet(tmp_path / "t.csv", tmp_path / "t.parquet")

    found, whole = pq.read_table(tmp_path / "t.parquet"), csv.read_csv(tmp_path / "t.csv")
    assert found.to_pydict() == whole.to_pydict()
    kinds = [str(field.type) for field in found.schema]
    assert kinds[:5] == ["int64", "double", "int64", "string", "bool"]
    assert kinds[5:] == ["date32[day]", "timestamp[ns]", "timestamp[ns, tz=UTC]", "null", "string"]
