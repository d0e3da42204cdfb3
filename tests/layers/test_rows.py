"""Rows of a table with several rows per patch in batches: by every rule, on any number of ranks, after any stop."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reben_cloud as rc
from reben_cloud.errors import NotFoundError
from reben_cloud.root.layers import LayerTable
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from tests.batches import samples
from tests.layers.data import NUM_PATCHES

TYPES = ("binary", "mcq", "captioning")
COLUMNS = ("number", "input", "type", "score", "rank", "right", "vector")


@pytest.fixture(scope="module")
def texts(ds):
    """1 to 7 texts for each patch, but none for every ninth; rows of patches mixed, nulls here and there."""
    counts = [0 if n % 9 == 0 else 1 + n % 7 for n in range(NUM_PATCHES)]
    frame = pd.DataFrame({"patch_id": np.repeat(ds.selection.patch_ids, counts)})
    frame = frame.sample(frac=1, random_state=2).reset_index(drop=True)
    number = np.arange(len(frame), dtype=np.int64)
    return frame.assign(
        number=number,
        input=[None if n % 13 == 0 else f"What is n° {n}?" for n in number],
        type=[TYPES[n % 3] for n in number],
        score=[np.nan if n % 11 == 0 else n / 4 for n in number],
        rank=pd.array([None if n % 10 == 0 else n % 5 for n in number], dtype="Int16"),
        right=number % 2 == 0,
        vector=[np.arange(3, dtype=np.float32) + np.float32(n) for n in number],
    )


@pytest.fixture(scope="module")
def notes(ds):
    """Two notes for every second patch."""
    ids = ds.selection.patch_ids[::2]
    return pd.DataFrame({"patch_id": np.repeat(ids, 2), "note": [f"note {n}" for n in range(2 * len(ids))]})


@pytest.fixture(scope="module")
def places(ds):
    """One row for two of three patches."""
    ids = [patch_id for number, patch_id in enumerate(ds.selection.patch_ids) if number % 3]
    number = np.arange(len(ids))
    return pd.DataFrame(
        {
            "patch_id": ids,
            "zone": number.astype(np.int16),
            "title": [None if n == 4 else f"place {n}" for n in number],
            "level": pd.array([None if n == 7 else n for n in number], dtype="Int32"),
            "heat": [np.nan if n == 5 else n / 2 for n in number],
            "vector": [np.arange(4, dtype=np.float32) * np.float32(n) for n in number],
        }
    )


@pytest.fixture(scope="module")
def attached(root, ds, texts, notes, places, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        # Row groups of a few patches each, so that a block of patches needs several.
        patch.setattr("reben_cloud.layers.table_work.MOST_ROWS", 30)
        patch.setattr("reben_cloud.layers.table_work.LEAST_ROWS", 10)
        txt = rc.write_table(folder / "txt", ds, name="txt", table=texts)
    note = rc.write_table(folder / "notes", ds, name="notes", table=notes)
    place = rc.write_table(folder / "places", ds, name="places", table=places)
    return rc.open(root, layers=[txt, note, place])


@pytest.fixture(scope="module")
def selection(attached):
    return attached.search()


@pytest.fixture(scope="module")
def numbers_of(texts):
    """Patch -> the numbers of its texts."""
    return texts.groupby("patch_id").number.apply(set).to_dict()


def plain(column):
    """The values of a column of pandas, None where there is none."""
    return [None if missing else value for value, missing in zip(column, column.isna(), strict=True)]


def run(selection, *, world_size=1, batch_size=8, modalities=("s1",), epoch=0, **options):
    """(patch id, number of the text) of every sample of an epoch, over all ranks, and the batches of each rank."""
    ids, found, ranks = selection.patch_ids, [], []
    for rank in range(world_size):
        loader = RawLoader(
            selection, modalities=list(modalities), batch_size=batch_size, world_size=world_size, rank=rank,
            epoch=epoch, **options,
        )  # fmt: skip
        ranks.append([dict(batch) for batch in loader])
        found += [pair for batch in ranks[-1] for pair in pairs(batch, ids)]
    return found, ranks


def pairs(batch, ids):
    numbers = batch["txt:number"]
    valid = np.flatnonzero(batch["valid"])
    return [
        (ids[batch["index"][row]], numbers[row] if isinstance(numbers, list) else int(numbers[row]))
        for row in valid
    ]


# -- one --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 5), (1, 64), (2, 8), (4, 3), (4, 16)])
def test_one_row_of_a_patch_is_the_same_however_it_is_read(selection, numbers_of, world_size, batch_size):
    drawn = selection.with_rows("txt", columns=["number"])
    expected = dict(run(drawn, epoch=3, seed=5)[0])

    found, _ = run(drawn, world_size=world_size, batch_size=batch_size, epoch=3, seed=5)

    assert len(found) == len(expected) == len(numbers_of)
    assert dict(found) == expected
    assert all(number in numbers_of[patch_id] for patch_id, number in found)


def test_the_order_does_not_change_which_row_a_patch_has(selection):
    drawn = selection.with_rows("txt", columns=["number"])

    orders = [run(drawn, shuffle=False), run(drawn, lanes=4, window=2)]

    assert all(dict(found) == dict(run(drawn)[0]) for found, _ in orders)


def test_a_part_of_the_patches_has_the_rows_that_all_have(attached, selection):
    whole = dict(run(selection.with_rows("txt"))[0])

    part = dict(run(attached.search(split="train").with_rows("txt"))[0])

    assert 0 < len(part) < len(whole)
    assert part == {patch_id: whole[patch_id] for patch_id in part}


def test_over_as_many_epochs_as_it_has_rows_each_row_comes_once(selection, numbers_of):
    drawn = selection.with_rows("txt", columns=["number"])
    loader = RawLoader(drawn, modalities=["s1"], batch_size=16, epoch=2)

    seen = defaultdict(list)
    for _ in range(7):
        for batch in loader:
            for patch_id, number in pairs(batch, drawn.patch_ids):
                seen[patch_id].append(number)

    for patch_id, numbers in numbers_of.items():
        assert set(seen[patch_id][: len(numbers)]) == numbers
        assert seen[patch_id] == (seen[patch_id][: len(numbers)] * 7)[:7]


def test_seeds_begin_with_other_rows(selection):
    drawn = selection.with_rows("txt")

    assert dict(run(drawn, seed=0)[0]) != dict(run(drawn, seed=1)[0])


# -- all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 7), (2, 8), (4, 5)])
def test_every_row_comes_once_an_epoch_with_the_pixels_of_its_patch(
    selection, texts, ds, world_size, batch_size
):
    drawn = selection.with_rows("txt", rule="all", columns=["number", "input"])
    pixels = samples(ds.search(), modalities=["s1"])
    inputs = plain(texts.input)

    found, ranks = run(drawn, world_size=world_size, batch_size=batch_size)

    assert sorted(found) == sorted(zip(texts.patch_id, texts.number, strict=True))
    assert RawLoader(drawn, batch_size=batch_size).num_samples == len(texts)
    assert len({len(batches) for batches in ranks}) == 1
    for batch in (batch for batches in ranks for batch in batches):
        for row in np.flatnonzero(batch["valid"]):
            theirs = pixels[drawn.patch_ids[batch["index"][row]]]
            np.testing.assert_array_equal(batch["s1"][row], theirs["s1"])
            np.testing.assert_array_equal(batch["labels"][row], theirs["labels"])
            assert batch["txt:input"][row] == inputs[batch["txt:number"][row]]


def test_unshuffled_rows_follow_the_selection(selection, texts):
    drawn = selection.with_rows("txt", rule="all", columns=["number"])

    found, _ = run(drawn, shuffle=False)

    by_patch = texts.groupby("patch_id").number.apply(list)
    assert found == [(i, number) for i in drawn.patch_ids for number in by_patch[i]]


@pytest.mark.parametrize("rule", ["one", "all", "list"])
@pytest.mark.parametrize(("before", "after"), [((1, 8), (2, 4)), ((4, 2), (1, 8)), ((2, 6), (2, 6))])
def test_a_run_goes_on_mid_epoch_on_other_ranks(selection, rule, before, after):
    drawn = selection.with_rows("txt", rule=rule, columns=["number"])

    def loaders(world_size, batch_size):
        return [
            RawLoader(
                drawn, modalities=["s1"], batch_size=batch_size, world_size=world_size, rank=rank, epoch=1
            )
            for rank in range(world_size)
        ]

    whole = [
        pair for loader in loaders(*before) for batch in loader for pair in pairs(batch, drawn.patch_ids)
    ]
    found = []
    for loader in loaders(*before):
        batches = iter(loader)
        for _ in range(3):
            found += pairs(next(batches), drawn.patch_ids)
        state = loader.state_dict()
        batches.close()
    for loader in loaders(*after):
        loader.load_state_dict(state)
        found += [pair for batch in loader for pair in pairs(batch, drawn.patch_ids)]

    assert sorted(found) == sorted(whole)


@pytest.mark.s3
def test_pixels_are_fetched_for_patches_not_for_rows(attached, root, s3_bucket):
    store = open_store(f"{s3_bucket.url}/root", s3_bucket.storage_options)
    for path in root.rglob("*"):
        if path.is_file() and "_build" not in path.parts:
            store.put(path.relative_to(root).as_posix(), path.read_bytes())
    remote = rc.open(store.url, s3_bucket.storage_options, layers=list(attached.layers.values()))
    stats = {}
    for rule in ("one", "all"):
        # One lane: otherwise a shard, and even a patch of several rows, may be cut where a lane ends.
        loader = RawLoader(remote.search().with_rows("txt", rule=rule), batch_size=16, lanes=1)
        assert sum(int(batch["valid"].sum()) for batch in loader) == loader.num_samples
        stats[rule] = loader.stats()

    assert stats["all"].samples > 3 * stats["one"].samples
    assert stats["all"].requests == stats["one"].requests > 0
    assert stats["all"].bytes_read == stats["one"].bytes_read > 0


# -- list -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 7), (4, 5)])
def test_lists_have_all_rows_of_a_patch(selection, texts, world_size, batch_size):
    drawn = selection.with_rows("txt", rule="list")
    expected = {i: rows.drop(columns="patch_id") for i, rows in texts.groupby("patch_id")}

    found, ranks = run(drawn, world_size=world_size, batch_size=batch_size)

    assert dict(found) == {i: rows.number.tolist() for i, rows in expected.items()}
    for batch in (batch for batches in ranks for batch in batches):
        for row in range(batch_size if world_size > 1 else len(batch["valid"])):
            values = {name: batch[f"txt:{name}"][row] for name in COLUMNS}
            if not batch["valid"][row]:
                assert values == {name: [] for name in COLUMNS}
                continue
            rows = expected[drawn.patch_ids[batch["index"][row]]]
            for name in ("input", "rank", "score"):
                assert values[name] == plain(rows[name])
            assert values["vector"] == [one.tolist() for one in rows.vector]


# -- what batches have ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["one", "all"])
@pytest.mark.parametrize("world_size", [1, 4])
def test_columns_are_arrays_of_numbers_and_lists_of_all_else(selection, texts, rule, world_size):
    rows = texts.set_index("number", drop=False)

    _, ranks = run(selection.with_rows("txt", rule=rule), world_size=world_size, batch_size=7)

    num_nulls = 0
    for batch in (batch for batches in ranks for batch in batches):
        valid = batch["valid"]
        mine = rows.loc[batch["txt:number"][valid]]
        for name, dtype in {
            "number": np.int64,
            "score": np.float64,
            "right": np.bool_,
            "vector": np.float32,
        }.items():
            values = batch[f"txt:{name}"]
            assert values.dtype == dtype
            want = np.stack(mine[name]) if name == "vector" else mine[name].to_numpy()
            np.testing.assert_array_equal(values[valid], want)
            assert not values[~valid].any()
        ranked = batch["txt:rank"]
        num_nulls += mine["rank"].isna().sum()
        # Whole numbers have no value for null: a batch that has one is a list.
        assert isinstance(ranked, list if mine["rank"].isna().any() else np.ndarray)
        assert [ranked[row] for row in np.flatnonzero(valid)] == plain(mine["rank"])
        for name in ("input", "type"):
            assert len(batch[f"txt:{name}"]) == len(valid)
            assert [batch[f"txt:{name}"][row] for row in np.flatnonzero(valid)] == plain(mine[name])
            assert all(batch[f"txt:{name}"][row] == "" for row in np.flatnonzero(~valid))
    assert num_nulls


def test_ranks_without_a_sample_have_the_columns_of_the_others(attached, numbers_of):
    """Four ranks, one patch with one row: three have nothing but padding, and all have batches of one form."""
    patch_id = next(patch_id for patch_id, numbers in numbers_of.items() if len(numbers) == 1)
    for rule in ("one", "all", "list"):
        drawn = attached.search(ids=[patch_id]).with_rows("txt", rule=rule)

        _, ranks = run(drawn, world_size=4, batch_size=16)

        batches = [batch for found in ranks for batch in found]
        assert len({tuple(sorted(batch)) for batch in batches}) == 1
        for batch in batches:
            assert {len(values) for values in batch.values()} == {16}
        empty = next(batch for batch in batches if not batch["valid"].any())
        if rule != "list":
            assert empty["txt:vector"].shape == (16, 3)
            assert empty["txt:score"].dtype == np.float64
            assert empty["txt:input"] == [""] * 16


def test_columns_may_be_chosen(selection):
    def names(**options):
        batch = next(iter(RawLoader(selection.with_rows("txt", **options), modalities=["s1"], columns=[])))
        return {name for name in batch if name.startswith("txt:")}

    assert names() == {f"txt:{name}" for name in COLUMNS}
    assert names(columns=["type", "number"]) == {"txt:type", "txt:number"}
    assert names(columns=[]) == set()
    assert names(rule="list", columns=["type"]) == {"txt:type"}


def test_what_cannot_be_drawn_is_refused(selection):
    for options, message in (
        ({"layer": "texts"}, "has no layer 'texts' with it; there are txt, notes, places"),
        ({"layer": "places"}, "'places' has one row per patch at most"),
        ({"layer": "txt", "rule": "any"}, "rule must be one of 'one', 'all', 'list', got 'any'"),
        ({"layer": "txt", "columns": ["inptu"]}, "did you mean 'input'"),
        ({"layer": "txt", "columns": "input"}, r"such as \['input'\], not a string"),
        ({"layer": "txt", "where": "typ = 'mcq'"}, "typ"),
        ({"layer": "txt", "where": "type ="}, "where|CQL2|cql2"),
    ):
        with pytest.raises(ValueError, match=message):
            selection.with_rows(**options)
    with pytest.raises(
        NotFoundError, match=r"none of the 60 patches .* has a row in the layer txt that fits where="
    ):
        selection.with_rows("txt", where="type = 'poem'")
    with pytest.raises(ValueError, match="has rows of 'txt' already"):
        selection.with_rows("txt").with_rows("txt")


# -- where ------------------------------------------------------------------------------------------------

comparisons = st.one_of(
    st.tuples(st.just("type"), st.sampled_from(["=", "<>"]), st.sampled_from(TYPES)),
    st.tuples(
        st.sampled_from(["number", "score", "rank"]),
        st.sampled_from(["<", "<=", ">", ">=", "="]),
        st.integers(-1, 60),
    ),
    st.tuples(
        st.sampled_from(["input", "score", "rank"]), st.sampled_from(["IS NULL", "IS NOT NULL"]), st.none()
    ),
)


def as_cql(comparison):
    name, operator, value = comparison
    return f"{name} {operator}" + ("" if value is None else f" {value!r}")


def as_mask(frame, comparison):
    name, operator, value = comparison
    column = frame[name]
    if value is None:
        return column.isna() if operator == "IS NULL" else column.notna()
    compare = {"=": "eq", "<>": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}[operator]
    return getattr(column, compare)(value).fillna(False).astype(bool) & column.notna()


@given(st.lists(comparisons, min_size=1, max_size=3), st.sampled_from(["AND", "OR"]))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_where_keeps_the_rows_that_pandas_keeps(selection, texts, filters, word):
    where = f" {word} ".join(f"({as_cql(one)})" for one in filters)
    masks = np.stack([as_mask(texts, one) for one in filters])
    kept = texts[masks.all(axis=0) if word == "AND" else masks.any(axis=0)]

    if kept.empty:
        with pytest.raises(NotFoundError):
            selection.with_rows("txt", where=where)
        return
    drawn = selection.with_rows("txt", rule="all", where=where, columns=["number"])

    assert drawn.patch_ids == [i for i in selection.patch_ids if i in set(kept.patch_id)]
    (rows,) = drawn.drawn
    table = selection.dataset.layers["txt"].rows
    assert isinstance(table, LayerTable)
    found = table.take(rows.numbers, ["patch_id", "number"]).to_pandas()
    assert sorted(found.number) == sorted(kept.number)
    assert found.patch_id.tolist() == np.repeat(drawn.patch_ids, rows.counts).tolist()


@pytest.mark.parametrize("rule", ["one", "all", "list"])
def test_rows_that_do_not_fit_are_in_no_batch(selection, texts, rule):
    kept = texts[(texts.type == "mcq") & (texts.number > 20)]
    drawn = selection.with_rows("txt", rule=rule, where="type = 'mcq' AND number > 20")

    found = run(drawn)[0]

    if rule == "all":
        assert sorted(number for _, number in found) == sorted(kept.number)
    assert {patch_id for patch_id, _ in found} == set(kept.patch_id)
    numbers = [n for _, one in found for n in (one if isinstance(one, list) else [one])]
    assert set(numbers) <= set(kept.number)


def test_a_state_of_another_filter_is_refused(selection):
    def loader(**options):
        return RawLoader(selection.with_rows("txt", **options), modalities=["s1"], batch_size=8)

    state = loader(where="number <> 3").state_dict()

    loader(where="number <> 3", columns=["type"]).load_state_dict(state)
    for options in ({"where": "number <> 4"}, {}, {"where": "number <> 3", "rule": "all"}):
        with pytest.raises(ValueError, match=r"was saved with (selection|num_samples)="):
            loader(**options).load_state_dict(state)
    with pytest.raises(ValueError, match=r"was saved with (selection|num_samples)="):
        RawLoader(selection, modalities=["s1"], batch_size=8).load_state_dict(state)


# -- several layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [("one", "list"), ("all", "list"), ("all", "one"), ("list", "list")])
@pytest.mark.parametrize("is_first", [True, False])
def test_rows_of_two_layers_stand_side_by_side(selection, texts, notes, rules, is_first):
    first, second = rules
    if is_first:
        drawn = selection.with_rows("txt", rule=first).with_rows("notes", rule=second)
    else:
        drawn = selection.with_rows("notes", rule=second).with_rows("txt", rule=first)
    both = set(texts.patch_id) & set(notes.patch_id)
    by_patch = notes.groupby("patch_id").note.apply(list)

    _, ranks = run(drawn, world_size=2, batch_size=6)

    found = []
    for batch in (batch for batches in ranks for batch in batches):
        for row in np.flatnonzero(batch["valid"]):
            patch_id = drawn.patch_ids[batch["index"][row]]
            note = batch["notes:note"][row]
            assert note == by_patch[patch_id] if second == "list" else note in by_patch[patch_id]
            found.append((patch_id, batch["txt:number"][row]))
    assert {patch_id for patch_id, _ in found} == both
    if first == "all":
        kept = texts[texts.patch_id.isin(both)]
        assert sorted(found) == sorted(zip(kept.patch_id, kept.number, strict=True))
    else:
        assert len(found) == len(both)


def test_only_one_layer_is_delivered_row_by_row(selection):
    drawn = selection.with_rows("txt", rule="all").with_rows("notes", rule="all")

    with pytest.raises(ValueError, match="only one table can be streamed by the rule 'all'"):
        RawLoader(drawn)


# -- tables with one row per patch --------------------------------------------------------------------------


def test_numbers_of_tables_with_one_row_are_arrays_by_default(selection, places, caplog):
    found = samples(selection, modalities=["s1"])

    assert (
        "column 'places:level' is null for 1 patches that its layer has, and int32 has no NaN" in caplog.text
    )
    rows = places.set_index("patch_id")
    for patch_id, arrays in found.items():
        assert set(arrays) == {"s1", "labels", "places:zone", "places:heat", "places_present"}
        there = patch_id in rows.index
        assert arrays["places_present"] == there
        np.testing.assert_array_equal(arrays["places:zone"], rows.zone[patch_id] if there else 0)
        np.testing.assert_array_equal(arrays["places:heat"], rows.heat[patch_id] if there else np.nan)


@pytest.mark.parametrize("world_size", [1, 4])
def test_columns_of_tables_with_one_row_that_were_asked_for(selection, places, world_size):
    rows = places.set_index("patch_id")

    for rank in range(world_size):
        loader = RawLoader(
            selection, modalities=["s1"], columns=["places:title", "places:vector"], batch_size=7, rank=rank,
            world_size=world_size,
        )  # fmt: skip
        for batch in loader:
            assert len(batch["places:title"]) == len(batch["valid"])
            for row, is_valid in enumerate(batch["valid"]):
                patch_id = selection.patch_ids[batch["index"][row]] if is_valid else ""
                title = rows.title.get(patch_id)
                assert batch["places:title"][row] == (title if isinstance(title, str) else "")
                if patch_id in rows.index:
                    np.testing.assert_array_equal(batch["places:vector"][row], rows.vector[patch_id])
                elif is_valid:
                    assert np.isnan(batch["places:vector"][row]).all()


def test_whole_numbers_with_nulls_that_were_asked_for_are_refused(attached):
    with pytest.raises(ValueError, match=r"'places:level' is null for 1 patches .* IS NOT NULL"):
        RawLoader(attached.search(), columns=["places:level"])

    some = attached.search(cql2='"places:level" IS NOT NULL')
    batch = next(iter(RawLoader(some, modalities=["s1"], columns=["places:level"], batch_size=64)))
    assert batch["places:level"].dtype == np.int32
    assert len(some) == 39


# -- the PyTorch face -------------------------------------------------------------------------------------


def by_sample(batches, ids):
    """(patch id, texts and numbers) of every sample, sorted."""
    found = []
    for batch in batches:
        for row in np.flatnonzero(np.asarray(batch["valid"])):
            values = (batch[name][row] for name in ("txt:number", "txt:input", "txt:score"))
            number, text, score = (v.tolist() if hasattr(v, "tolist") else v for v in values)
            found.append((ids[int(batch["index"][row])], number, text, repr(score)))
    return sorted(found, key=repr)


@pytest.mark.parametrize("rule", ["one", "all", "list"])
def test_tensors_and_lists_of_the_loader_are_those_of_the_raw_one(selection, rule):
    torch = pytest.importorskip("torch")
    from reben_cloud.torch import StreamLoader

    drawn = selection.with_rows("txt", rule=rule)
    options = {"modalities": ["s1"], "columns": ["places:title"], "batch_size": 8, "seed": 2, "epoch": 1}

    batches = list(StreamLoader(drawn, **options))

    raw = list(RawLoader(drawn, **options))
    assert len(batches) == len(raw)
    for mine, theirs in zip(batches, raw, strict=True):
        assert mine.keys() == theirs.keys()
        for name, values in theirs.items():
            assert isinstance(mine[name], torch.Tensor if isinstance(values, np.ndarray) else list)
            if isinstance(values, list):
                assert mine[name] == values
            else:
                np.testing.assert_array_equal(mine[name].numpy(), values, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["one", "all", "list"])
def test_workers_of_a_dataloader_give_the_same_rows(selection, rule):
    torch = pytest.importorskip("torch")
    from reben_cloud.torch import StreamDataset

    drawn = selection.with_rows("txt", rule=rule, columns=["number", "input", "score"])
    dataset = StreamDataset(drawn, modalities=["s1"], columns=[], batch_size=8, seed=2, epoch=1)

    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn"
    )

    raw = RawLoader(drawn, modalities=["s1"], columns=[], batch_size=8, seed=2, epoch=1)
    assert by_sample(loader, drawn.patch_ids) == by_sample(map(dict, raw), drawn.patch_ids)
