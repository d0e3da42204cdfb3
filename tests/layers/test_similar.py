"""Neighbours and suspect labels of a selection, compared with NumPy over all patches."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reben_cloud as rc
from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.layers import publish
from reben_cloud.ranking.suspects import suspects
from reben_cloud.root import layout
from reben_cloud.root.grouped import GroupedTable
from reben_cloud.root.layer_manifest import LayerManifest
from reben_cloud.schema import TensorSpec
from reben_cloud.serve.layers import embeddings_of
from reben_cloud.store import open_store
from tests.commands import invoke as run
from tests.layers.data import EMBEDDING, embedding_of


def vectors_column(values, dtype):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(values), dtype), len(values[0]))


@pytest.fixture(scope="module")
def probabilities(ds):
    """Mostly what the labels say, float32 (60, 19)."""
    given = ds.schema.classes.encode(ds.selection.column("reben:labels"))
    noise = np.random.default_rng(3).uniform(0, 0.45, given.shape)
    return np.abs(given - noise).astype(np.float32)


@pytest.fixture(scope="module")
def layers(ds, covered, probabilities, tmp_path_factory):
    """Embeddings of two of three patches, one of them null; predictions of all."""
    folder = tmp_path_factory.mktemp("vectors")
    vectors = vectors_column([embedding_of(i) for i in covered], pa.float16()).to_pylist()
    vectors[4] = None
    table = pa.table({"patch_id": covered, "vector": pa.array(vectors, pa.list_(pa.float16(), 24))})
    emb = rc.write_table(folder / "emb", ds, name="emb", table=table)
    table = pa.table(
        {
            "patch_id": ds.selection.patch_ids,
            "probabilities": vectors_column(list(probabilities), pa.float32()),
        }
    )
    pred = rc.write_table(folder / "pred", ds, name="pred", table=table)
    return emb, pred


@pytest.fixture(scope="module")
def with_both(root, layers):
    return rc.open(root, layers=[one.url for one in layers])


def expected(ids, query, metric, *, k):
    """Ids and scores of the nearest, in float64."""
    matrix, query = np.stack([embedding_of(i) for i in ids]).astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        keys = np.linalg.norm(matrix - query, axis=1)
        order = np.argsort(keys, kind="stable")[:k]
    else:
        keys = matrix @ query
        if metric == "cosine":
            keys /= np.linalg.norm(matrix, axis=1) * np.linalg.norm(query)
        order = np.argsort(-keys, kind="stable")[:k]
    return [ids[at] for at in order], keys[order]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_neighbours_of_a_patch_are_numpys(with_both, covered, metric):
    there = [i for number, i in enumerate(covered) if number != 4]

    found = with_both.selection.nearest(there[7], column="emb:vector", k=9, metric=metric)

    ids, scores = expected([i for i in there if i != there[7]], embedding_of(there[7]), metric, k=9)
    assert found.selection.patch_ids == ids
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
    assert found.num_left_out == 60 - len(there)
    assert found.to_pandas().columns[:2].tolist() == ["patch_id", "score"]
    assert found.to_pandas().patch_id.tolist() == ids


def test_only_the_selection_is_looked_at_whatever_its_order(with_both, covered):
    some = with_both.search(ids=covered[30:4:-3], ids_order=True)
    query = np.arange(24)

    found = some.nearest(query, column="emb:vector", k=100)

    assert found.selection.patch_ids == expected(covered[30:4:-3], query, "cosine", k=100)[0]
    assert found.num_left_out == 0
    (again,) = some.nearest(covered[0], column="emb:vector", k=1).selection.patch_ids
    assert again in covered[30:4:-3]


@pytest.mark.parametrize("dtype", [pa.float32(), pa.float64(), pa.int8(), pa.int16()])
def test_a_whole_layer_of_any_numbers_needs_no_column(ds, root, tmp_path, dtype):
    ids = ds.selection.patch_ids
    values = [np.round(4 * embedding_of(i).astype(np.float64)) for i in ids]
    table = pa.table({"patch_id": ids[::-1], "v": vectors_column(values[::-1], dtype)})
    layer = rc.write_table(tmp_path / "v", ds, name="v", table=table)

    found = rc.open(root, layers=[layer.url]).selection.nearest(ids[3], k=2, metric="l2")

    distances = np.linalg.norm(np.stack(values) - values[3], axis=1)
    distances[3] = np.inf
    assert found.selection.patch_ids == [ids[at] for at in np.argsort(distances, kind="stable")[:2]]
    assert found.column == "v:v"


def test_no_embedding_is_kept_in_memory(with_both, covered):
    with_both.selection.nearest(covered[0], column="emb:vector")

    tables = [with_both.patch_table, with_both.layers["emb"].rows]
    assert all(isinstance(one, GroupedTable) for one in tables)
    assert not [name for one in tables for _, name in one._columns if name.endswith("vector")]


def test_rows_drawn_stay_with_their_patches(root, layers, covered, ds, tmp_path):
    texts = pa.table(
        {"patch_id": [i for i in covered for _ in (0, 1)], "input": [i for i in covered for _ in (0, 1)]}
    )
    txt = rc.write_table(tmp_path / "txt", ds, name="txt", table=texts, many=True)
    found = rc.open(root, layers=[layers[0].url, txt.url]).selection.with_rows("txt", rule="list")

    near = found.nearest(covered[0], k=5).selection

    (drawn,) = near.drawn
    rows = txt.rows.take(drawn.numbers, ["input"]).column("input").to_pylist()
    assert rows == [i for i in near.patch_ids for _ in (0, 1)]


def test_what_cannot_be_compared_is_named(with_both, covered, ds, root, tmp_path):
    selection = with_both.selection
    with pytest.raises(ValueError, match="several columns of vectors: name one of emb:vector, pred:prob"):
        selection.nearest(covered[0])
    with pytest.raises(ValueError, match="did you mean 'emb:vector'"):
        selection.nearest(covered[0], column="emb:vectors")
    with pytest.raises(ValueError, match=r"emb:vector has vectors of 24 numbers.*\(23,\)"):
        selection.nearest(np.zeros(23), column="emb:vector")
    with pytest.raises(NotFoundError, match=f"no emb:vector of {covered[4]}"):
        selection.nearest(covered[4], column="emb:vector")
    with pytest.raises(NotFoundError, match="has no patch 'nothing'"):
        selection.nearest("nothing", column="emb:vector")
    with pytest.raises(ValueError, match="k must be at least 1"):
        selection.nearest(covered[0], column="emb:vector", k=0)
    with pytest.raises(ValueError, match="no layer with a column of vectors"):
        ds.selection.nearest(covered[0])

    values = [embedding_of(i) for i in covered]
    values[9] = values[9] * np.float16(np.nan)
    table = pa.table({"patch_id": covered, "vector": vectors_column(values, pa.float16())})
    spoilt = rc.write_table(tmp_path / "spoilt", ds, name="emb", table=table)
    with pytest.raises(
        ValueError, match=f"emb:vector of {covered[9]} in .* infinite or NaN; write the layer again"
    ):
        rc.open(root, layers=[spoilt.url]).selection.nearest(covered[0])


def test_suspects_of_a_column_are_those_of_the_array(with_both, probabilities):
    found = with_both.selection.suspects("pred:probabilities", limit=40)

    same = with_both.selection.suspects(probabilities, limit=40)
    classes = with_both.schema.classes
    given = classes.encode(with_both.selection.column("reben:labels")).astype(bool)
    want = suspects(given, probabilities, limit=40)
    ids = with_both.selection.patch_ids
    for one in (found, same):
        frame = one.to_pandas()
        assert frame.patch_id.tolist() == [ids[row] for row in want.rows]
        assert frame.label.tolist() == [classes.names[number] for number in want.classes]
        assert frame.given.tolist() == want.given.tolist()
        np.testing.assert_array_equal(frame.score, want.scores)
        np.testing.assert_array_equal(frame.probability, want.probabilities)
    assert found.selection.patch_ids == list(dict.fromkeys(found.patch_ids))


def test_patches_without_a_prediction_are_left_out(ds, root, covered, probabilities, tmp_path):
    mine = dict(zip(ds.selection.patch_ids, probabilities, strict=True))
    table = pa.table({"patch_id": covered, "p": vectors_column([mine[i] for i in covered], pa.float32())})
    layer = rc.write_table(tmp_path / "p", ds, name="p", table=table)
    dataset = rc.open(root, layers=[layer.url])

    found = dataset.selection.suspects("p:p", by="patch")

    want = dataset.search(ids=covered).suspects(np.stack([mine[i] for i in covered]), by="patch")
    assert found.num_left_out == 60 - len(covered)
    assert found.patch_ids == want.patch_ids
    assert sorted(found.patch_ids) == sorted(covered)


def test_predictions_that_do_not_fit_are_named(with_both, probabilities):
    selection = with_both.selection
    with pytest.raises(ValueError, match=r"emb:vector has 24 numbers per patch, and .* has 19 classes"):
        selection.suspects("emb:vector")
    with pytest.raises(ValueError, match=r"shape \(60, 19\).* got \(59, 19\)"):
        selection.suspects(probabilities[1:])
    with pytest.raises(TypeError, match="must be floats, got int64"):
        selection.suspects(np.zeros((60, 19), np.int64))
    wrong = probabilities.copy()
    wrong[5, 2] = 1.5
    name = with_both.schema.classes.names[2]
    with pytest.raises(
        ValueError, match=f"of '{name}' in {selection.patch_ids[5]} must be in .* got 1.5; a model"
    ):
        selection.suspects(wrong)


def test_the_command_search_lists_neighbours(root, layers, with_both, covered):
    options = ["--layer", layers[0].url, "--near", covered[0], "--limit", 4]
    want = with_both.selection.nearest(covered[0], column="emb:vector", k=4)

    plain = run("search", root, *options, "--format", "ids")
    listed = json.loads(run("search", root, *options, "--json").stdout)
    table = run("search", root, *options)
    some = run("search", root, *options, "--split", "train", "--format", "ids", "--near-column", "emb:vector")

    assert plain.stdout.split() == want.selection.patch_ids
    assert plain.stderr == f"{want.num_left_out} patches have no emb:vector, so they were not compared\n"
    assert [row["patch_id"] for row in listed] == want.selection.patch_ids
    np.testing.assert_allclose([row["score"] for row in listed], want.scores, rtol=1e-6)
    assert re.findall(r"\b\d\.\d{4}\b", table.stdout) == [f"{s:.4f}" for s in want.scores]
    train = with_both.search(split="train").nearest(covered[0], column="emb:vector", k=4)
    assert some.stdout.split() == train.selection.patch_ids


def test_the_command_suspects_lists_the_ranking(root, layers, with_both):
    options = ["--layer", layers[1].url, "--column", "pred:probabilities", "--split", "train"]
    want = with_both.search(split="train").suspects("pred:probabilities", limit=20).to_pandas()

    listed = json.loads(run("suspects", root, *options, "--json").stdout)
    shown = run("suspects", root, *options, "--limit", 3)
    patches = json.loads(run("suspects", root, *options, "--by", "patch", "--limit", 2, "--json").stdout)

    assert listed == want.to_dict(orient="records")
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == want.patch_id[:3].tolist()
    ranked = with_both.search(split="train").suspects("pred:probabilities", by="patch", limit=2)
    assert [row["patch_id"] for row in patches] == ranked.patch_ids


def test_wrong_usage_of_both_is_said(root, layers, covered):
    both = ["--layer", layers[0].url, "--layer", layers[1].url]
    for arguments, message in (
        (["search", root, *both, "--near", covered[0]], "several columns of vectors"),
        (["search", root, *both, "--near-column", "emb:vector"], "--near-column belongs to --near"),
        (["search", root, *both, "--near", covered[0], "--sortby", "id"], "an order of its own"),
        (["suspects", root, *both, "--column", "pred:wrong"], "unknown column of vectors"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert message in " ".join(done.stderr.replace("│", " ").split())


def stands_as_in_memory(layer):
    """Whether each row group's vectors are read without decoding."""
    groups = range(len(layer.rows.group_starts) - 1)
    return [layer.rows.vectors_once(group, "vector") is not None for group in groups]


def embedding_layer(ds, folder, ids, values, kind):
    column = pa.array([None if v is None else v.tolist() for v in values], kind)
    return rc.write_table(folder, ds, name="emb", table=pa.table({"patch_id": ids, "vector": column}))


@pytest.mark.parametrize("dtype", [pa.float16(), pa.float32(), pa.float64(), pa.int32(), pa.uint64()])
def test_vectors_stand_in_the_file_as_any_reader_of_parquet_finds_them(ds, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("reben_cloud.layers.table_work.MOST_BYTES", 25 * 24 * dtype.bit_width // 8)
    ids, kind = ds.selection.patch_ids, pa.list_(dtype, 24)
    values = [np.abs(np.round(100 * embedding_of(i))).astype(dtype.to_pandas_dtype()) for i in ids]

    layer = embedding_layer(ds, tmp_path / "emb", ids, values, kind)

    assert stands_as_in_memory(layer) == [True, True, True]  # 25, 25 and 10 rows
    read = np.concatenate([layer.rows.vectors_once(group, "vector") for group in range(3)])
    assert read.dtype == values[0].dtype
    np.testing.assert_array_equal(read, values)
    table_read = pq.read_table(tmp_path / "emb" / "rows.parquet", page_checksum_verification=True)
    np.testing.assert_array_equal(table_read.column("vector").to_pylist(), values)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        pytest.param(lambda v: None, pa.float32(), id="a list is null"),
        pytest.param(lambda v: v * np.nan, pa.float32(), id="a number is null"),
        pytest.param(lambda v: v, pa.int8(), id="parquet has no such numbers"),
    ],
)
def test_vectors_that_do_not_stand_so_are_decoded(ds, root, tmp_path, spoil, kind):
    ids = ds.selection.patch_ids
    values = [np.round(10 * embedding_of(i)) for i in ids]
    column = pa.array([v.tolist() for v in values], pa.list_(kind, 24))
    spoilt = spoil(values[7])
    lists = column.to_pylist()
    lists[7] = None if spoilt is None else [None if np.isnan(x) else x for x in spoilt.tolist()]
    column = pa.array(lists, pa.list_(kind, 24))

    layer = rc.write_table(
        tmp_path / "emb", ds, name="emb", table=pa.table({"patch_id": ids, "vector": column})
    )

    assert stands_as_in_memory(layer) == [False]
    some = [i for i in ids if i != ids[7]]
    found = rc.open(root, layers=[layer.url]).search(ids=some).nearest(ids[3], k=5, metric="l2")
    distances = np.linalg.norm(np.stack(values) - values[3], axis=1)
    distances[[3, 7]] = np.inf
    assert found.selection.patch_ids == [ids[at] for at in np.argsort(distances, kind="stable")[:5]]


def test_a_layer_of_before_is_read_by_decoding(ds, root, covered, tmp_path):
    rows = pa.table(
        {"patch_id": covered, "vector": vectors_column([embedding_of(i) for i in covered], pa.float16())}
    )
    data, seal = publish.encode_table([rows], rows.schema, row_group_rows=16)
    store = open_store(tmp_path)
    store.put(layout.ROWS, data)
    manifest = LayerManifest.of(
        kind="one",
        name="emb",
        fingerprint=ds.manifest.fingerprint,
        num_patches=len(ds),
        coverage=len(covered),
        num_rows=len(covered),
        rows=seal,
    )
    layer = publish.commit_layer(store, manifest, {})

    found = rc.open(root, layers=[layer.url]).selection.nearest(embedding_of(covered[5]), k=7)

    assert stands_as_in_memory(layer) == [False] * 3
    assert found.selection.patch_ids == expected(covered, embedding_of(covered[5]), "cosine", k=7)[0]


def test_every_byte_of_the_vectors_is_compared(ds, root, tmp_path):
    ids = ds.selection.patch_ids
    kind = pa.list_(pa.float16(), 24)
    layer = embedding_layer(ds, tmp_path / "emb", ids, [embedding_of(i) for i in ids], kind)
    file = tmp_path / "emb" / "rows.parquet"
    whole = file.read_bytes()
    first = whole.index(embedding_of(ids[0]).tobytes())

    for at in (first, first + 1000, first + 60 * 24 * 2 - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(ChecksumError, match=r"column vector\.list\.element of row group 0"):
            rc.open(root, layers=[layer.url]).selection.nearest(ids[0])


@pytest.fixture(scope="module")
def array_layer(ds, covered, tmp_path_factory):
    """The same embeddings of two of three patches as tensors, beside one that is no vector of floats."""
    number = TensorSpec(name="number", shape=(1,), dtype="int16")
    return rc.write_layer(
        tmp_path_factory.mktemp("array") / "emb",
        ds,
        name="emb",
        tensors=[EMBEDDING, number],
        patches=[(i, {"vector": embedding_of(i), "number": np.ones(1, np.int16)}) for i in covered],
    )


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_vectors_in_an_array_layer_are_compared_alike(root, array_layer, covered, metric):
    selection = rc.open(root, layers=[array_layer.url]).selection

    found = selection.nearest(covered[7], k=9, metric=metric)

    ids, scores = expected([i for i in covered if i != covered[7]], embedding_of(covered[7]), metric, k=9)
    assert (found.column, found.selection.patch_ids) == ("emb:vector", ids)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
    assert found.num_left_out == 60 - len(covered)
    some = selection.dataset.search(ids=covered[30:4:-3], ids_order=True)
    query = embedding_of(covered[0])
    assert (
        some.nearest(query, k=100).selection.patch_ids
        == expected(covered[30:4:-3], query, "cosine", k=100)[0]
    )


def test_an_export_that_took_them_along_has_the_same_neighbours(root, array_layer, covered, tmp_path):
    selection = rc.open(root, layers=[array_layer.url]).selection
    selection.export_lmdb(tmp_path / "lmdb", modalities=["emb"])

    found = rc.open(tmp_path / "lmdb").selection.nearest(covered[3], column="emb:vector", k=6)

    same = selection.nearest(covered[3], k=6)
    assert found.selection.patch_ids == same.selection.patch_ids
    np.testing.assert_array_equal(found.scores, same.scores)
    assert found.num_left_out == same.num_left_out


def test_what_an_array_layer_lacks_is_named(root, ds, array_layer, covered):
    dataset = rc.open(root, layers=[array_layer.url])
    lacking = next(i for i in ds.selection.patch_ids if i not in covered)

    with pytest.raises(NotFoundError, match=f"no emb:vector of {lacking}: name a patch that has one"):
        dataset.selection.nearest(lacking)
    with pytest.raises(ValueError, match="'emb:number'"):
        dataset.selection.nearest(covered[0], column="emb:number")
    with pytest.raises(ValueError, match="emb:vector has 24 numbers per patch"):
        dataset.selection.suspects("emb:vector")
    rows = [ds.selection.patch_ids.index(i) for i in (lacking, covered[0])]
    assert [embeddings_of(dataset, row) for row in rows] == [[], ["emb:vector"]]
