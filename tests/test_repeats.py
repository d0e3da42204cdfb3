"""Weights: counts that are exact in the mean, any ranks, any resumption, copies apart; mixtures of roots."""

import collections
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.errors import NotFoundError
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.root.repeats import Repeats, copies_of, epoch_counts, epoch_length, repeat_factors, units_of
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import Delivered, RawLoader, RawPatches, expected_delivery

NUM_PATCHES = 60
OPTIONS = {"modalities": ["map"], "batch_size": 16}

# Written out for good: who resumes a run with the next release gets the same epochs.
GOLDEN_COUNTS = [[0, 1, 1, 1, 1, 3], [0, 0, 2, 0, 1, 4], [0, 1, 1, 1, 1, 3], [0, 0, 1, 1, 1, 4]]


def make_root(folder, num_patches, **options):
    source, official = open_source(f"synthetic:{num_patches}")
    build(make_plan(source, official, open_store(folder), options=PlacementOptions(**options)))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("repeats") / "root", NUM_PATCHES, shard_samples=16)


@pytest.fixture(scope="module")
def other_root(tmp_path_factory):
    """24 other patches, in smaller shards."""
    return make_root(tmp_path_factory.mktemp("repeats") / "other", 24, shard_samples=8)


@pytest.fixture(scope="module")
def pixels(root):
    """The maps of all patches, in the order of the whole selection."""
    return maps_of(rc.open(root).search())


def maps_of(selection):
    found = {}
    for batch in RawLoader(selection, **OPTIONS):
        found |= {int(i): batch["map"][row].copy() for row, i in enumerate(batch["index"])}
    return np.stack([found[i] for i in range(len(selection))])


@pytest.fixture
def selection(root):
    return rc.open(root).search()


WEIGHTS = st.lists(st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 9)), min_size=1, max_size=40).filter(
    lambda weights: math.fsum(weights) > 0.01
)


@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 1000))
def test_counts_are_the_scaled_weights_rounded_and_epochs_have_one_length(weights, seed, epoch):
    units = units_of(np.array(weights))
    length = epoch_length(units)
    scaled = np.array(weights) * length / math.fsum(weights)

    counts = epoch_counts(units, seed=seed, epoch=epoch)

    assert counts.sum() == length == max(1, round(math.fsum(weights)))
    assert (counts >= np.floor(scaled - 1e-6)).all()
    assert (counts <= np.ceil(scaled + 1e-6)).all()


@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 5), st.integers(0, 9))
@settings(max_examples=40)
def test_in_two_to_the_k_epochs_each_sample_comes_within_one_of_its_share(weights, seed, k, turn):
    units, epochs = units_of(np.array(weights)), 2**k
    scaled = np.array(weights) * epoch_length(units) / math.fsum(weights)

    found = sum(epoch_counts(units, seed=seed, epoch=turn * epochs + e) for e in range(epochs))

    assert np.abs(found - epochs * scaled).max() <= 1 + 1e-5


def test_the_mean_of_many_epochs_is_the_weight():
    weights = np.array([0.1, 0.35, 1.37, 0.68, 1.0, 3.5])
    units = units_of(weights)

    found = sum(epoch_counts(units, seed=3, epoch=e) for e in range(4096)) / 4096

    np.testing.assert_allclose(found, weights, atol=1 / 4096)


def test_the_counts_of_epochs_never_change():
    units = units_of(np.array([0.1, 0.35, 1.37, 0.68, 1.0, 3.5]))

    assert [epoch_counts(units, seed=3, epoch=e).tolist() for e in range(4)] == GOLDEN_COUNTS


@given(st.lists(st.integers(0, 7), max_size=30), st.integers(1, 4))
def test_copies_are_numbered_and_passes_follow_each_other(counts, passes):
    entry, copy, passed = copies_of(np.array(counts, np.int64), passes)

    assert sorted(zip(entry.tolist(), copy.tolist(), strict=True)) == [
        (e, c) for e, n in enumerate(counts) for c in range(n)
    ]
    assert (passed == copy % passes).all()
    key = passed * (len(counts) + 1) + entry
    assert (np.diff(key) >= 0).all()


def counted(batches):
    return collections.Counter(int(i) for b in batches for i in b["index"][b["valid"]])


def epoch_of(loader):
    return [{name: array.copy() for name, array in batch.items()} for batch in loader]


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_what_its_plan_says(selection, pixels, passes, shuffle):
    weights = np.linspace(0, 3.1, NUM_PATCHES)
    weighted = selection.weighted(weights, passes=passes)
    loader = RawLoader(weighted, seed=5, shuffle=shuffle, **OPTIONS)

    for epoch in range(3):
        batches = epoch_of(loader)

        plan = epoch_counts(units_of(weighted.repeats.weights), seed=5, epoch=epoch)
        assert counted(batches) == collections.Counter({i: int(n) for i, n in enumerate(plan) if n})
        assert len(batches) == len(loader) == -(-round(weights.sum()) // 16)
        assert loader.stats().delivered == expected_delivery(weighted, epoch=epoch, seed=5)
        for batch in batches:
            np.testing.assert_array_equal(batch["map"], pixels[batch["index"]])


@pytest.mark.parametrize("passes", [1, 2])
def test_ranks_and_resumptions_change_nothing(selection, passes):
    weighted = selection.weighted(np.linspace(0, 3.1, NUM_PATCHES), passes=passes)
    whole = epoch_of(RawLoader(weighted, seed=2, epoch=3, **{**OPTIONS, "batch_size": 12}))

    states, together = [], []
    for rank in range(3):
        loader = RawLoader(weighted, seed=2, epoch=3, rank=rank, world_size=3, **{**OPTIONS, "batch_size": 4})
        iterator = iter(loader)
        together.append([next(iterator)["index"].copy() for _ in range(2)])
        states.append(loader.state_dict())
        iterator.close()
    rest = RawLoader(weighted, seed=2, **{**OPTIONS, "batch_size": 12})
    rest.load_state_dict(states[0])
    later = epoch_of(rest)

    for step in range(2):
        found = sorted(i for rank in together for i in rank[step].tolist())
        assert found == sorted(whole[step]["index"].tolist())
    assert [sorted(b["index"].tolist()) for b in later] == [sorted(b["index"].tolist()) for b in whole[2:]]


def test_a_state_of_other_weights_is_refused(selection):
    weights = np.linspace(0, 3.1, NUM_PATCHES)
    state = RawLoader(selection.weighted(weights), **OPTIONS).state_dict()

    for other in (selection, selection.weighted(weights[::-1]), selection.weighted(weights, passes=2)):
        with pytest.raises(ValueError, match="resume with the same dataset, selection and order"):
            RawLoader(other, **OPTIONS).load_state_dict(state)
    RawLoader(selection.weighted(weights), **OPTIONS).load_state_dict(state)


def test_weights_of_one_are_the_selection_itself(selection):
    loader, weighted = (
        RawLoader(s, **OPTIONS) for s in (selection, selection.weighted(np.ones(NUM_PATCHES)))
    )

    for one, other in zip(epoch_of(loader), epoch_of(weighted), strict=True):
        np.testing.assert_array_equal(one["index"], other["index"])
    assert loader.stats().delivered == weighted.stats().delivered


def test_one_block_is_read_once_whatever_the_weights(selection):
    loader = RawLoader(selection.weighted(np.full(NUM_PATCHES, 3.0)), **OPTIONS)
    epoch_of(loader)

    assert loader.stats().samples == 3 * NUM_PATCHES
    assert loader.stats().requests <= 2 * len(rc.open(selection.dataset.url).manifest.groups) + 16


def test_weights_are_given_by_array_mapping_or_column(root, tmp_path):
    ids = rc.open(root).search().patch_ids
    table = pa.table({"patch_id": ids[:50], "w": np.arange(50) / 10})
    rc.write_table(tmp_path / "scores", rc.open(root), table=table, name="scores", title="Scores")
    dataset = rc.open(root, layers=[tmp_path / "scores"])
    chosen = dataset.search(has=["scores"])
    by_id = {patch_id: n / 10 for n, patch_id in enumerate(ids)}

    expected = [by_id[one] for one in chosen.patch_ids]
    for weights in ("scores:w", by_id, expected):
        np.testing.assert_allclose(chosen.weighted(weights).repeats.weights, expected, atol=1e-6)
    with pytest.raises(ValueError, match="'scores:w' is null for 10 of the patches"):
        dataset.search().weighted("scores:w")
    with pytest.raises(ValueError, match="59 patches have no weight, such as "):
        dataset.search().weighted({ids[0]: 1.0})
    batch = next(iter(RawLoader(chosen.weighted("scores:w"), columns=["scores:w"], **OPTIONS)))
    np.testing.assert_array_equal(batch["scores:w"], [by_id[chosen.patch_ids[i]] for i in batch["index"]])


def test_weights_and_rows_of_a_table(root, tmp_path):
    ids = rc.open(root).search().patch_ids
    rows = [(patch_id, f"{n} {row}") for n, patch_id in enumerate(ids[:20]) for row in range(1 + n % 3)]
    table = pa.table({"patch_id": [r[0] for r in rows], "text": [r[1] for r in rows]})
    rc.write_table(tmp_path / "txt", rc.open(root), table=table, name="txt", title="Texts", many=True)
    chosen = rc.open(root, layers=[tmp_path / "txt"]).search().with_rows("txt", rule="all")
    weights = {patch_id: 1 + n % 2 for n, patch_id in enumerate(ids)}
    ordered = [weights[one] for one in chosen.patch_ids]

    for weighted in (chosen.weighted(ordered), chosen.weighted(weights)):
        loader = RawLoader(weighted, **OPTIONS)
        found = collections.Counter(text for batch in loader for text in batch["txt:text"])

        assert found == collections.Counter({text: weights[patch_id] for patch_id, text in rows}), (
            "every row as often as its patch's weight"
        )
        assert loader.stats().delivered == expected_delivery(weighted, epoch=0)
    before = rc.open(root, layers=[tmp_path / "txt"]).search().weighted(weights).with_rows("txt", rule="one")
    texts = collections.defaultdict(list)
    for batch in RawLoader(before, **OPTIONS):
        for index, text in zip(batch["index"], batch["txt:text"], strict=True):
            texts[before.patch_ids[index]].append(text)
    for patch_id, some in texts.items():
        there = sum(one == patch_id for one, _ in rows)
        assert len(some) == weights[patch_id]
        assert len(set(some)) == min(there, len(some)), "copies of an epoch have its rows in turn"


def test_num_samples_scales_an_epoch(selection):
    weighted = selection.weighted(np.arange(NUM_PATCHES), num_samples=NUM_PATCHES)

    assert RawLoader(weighted, **OPTIONS).num_samples == NUM_PATCHES
    assert counted(RawLoader(weighted, **OPTIONS))[0] == 0


def by_hand(labels, power, threshold=None):
    """r(c) = max(1, (t / f(c)) ** power), r(patch) = max over its classes, one patch and class after the other."""
    share = [sum(row[c] for row in labels) / len(labels) for c in range(len(labels[0]))]
    there = sorted(f for f in share if f)
    middle = len(there) // 2
    median = there[middle] if len(there) % 2 else (there[middle - 1] + there[middle]) / 2
    t = median if threshold is None else threshold
    return [max([1.0, *((t / share[c]) ** power for c, has in enumerate(row) if has)]) for row in labels]


@given(
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([None, 0.3]),
)
def test_repeat_factors_are_those_of_the_paper(labels, power, threshold):
    if not any(map(any, labels)):
        assert (repeat_factors(np.array(labels, np.uint8), power=power) == 1).all()
        return
    found = repeat_factors(np.array(labels, np.uint8), power=power, threshold=threshold)

    np.testing.assert_allclose(found, by_hand(labels, power, threshold))


def test_a_balanced_selection_has_its_rarest_class_more_often(selection):
    labels = selection.dataset.schema.classes.encode(selection.column("reben:labels"))
    share = labels.mean(axis=0)
    rarest = int(np.argmin(np.where(share > 0, share, 2)))

    balanced = selection.balanced()

    np.testing.assert_allclose(balanced.repeats.weights, by_hand(labels.tolist(), 0.5), atol=1e-6)
    seen = counted(RawLoader(balanced, **OPTIONS))
    after = sum(n * labels[i, rarest] for i, n in seen.items()) / sum(seen.values())
    assert after > 1.2 * share[rarest]
    assert set(seen) == set(range(NUM_PATCHES)), "and no patch is left out"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        pytest.param(lambda s: s.weighted([1.0]), ValueError, r"of shape \(60,\), got \(1,\)", id="too few"),
        pytest.param(
            lambda s: s.weighted([-1.0] * 60), ValueError, "not negative, got -1.0 at", id="negative"
        ),
        pytest.param(lambda s: s.weighted([math.nan] * 60), ValueError, "must be finite", id="nan"),
        pytest.param(lambda s: s.weighted([0] * 60), NotFoundError, "all weights are 0", id="zeros"),
        pytest.param(lambda s: s.weighted([1e9] * 60), ValueError, "scale them down", id="too many"),
        pytest.param(lambda s: s.weighted([1] * 60, passes=0), ValueError, "passes must be", id="passes"),
        pytest.param(
            lambda s: s.weighted([1] * 60, num_samples=0), ValueError, "at least 1", id="num_samples"
        ),
        pytest.param(lambda s: s.balanced(2), ValueError, r"power must be in \[0, 1\], got 2", id="power"),
        pytest.param(lambda s: s.balanced(threshold=0), ValueError, "threshold must be in", id="threshold"),
    ],
)
def test_wrong_weights_are_refused(selection, make, error, message):
    with pytest.raises(error, match=message):
        make(selection)


def test_weights_stay_with_their_patches_in_a_part(selection):
    weighted = selection.weighted(np.arange(NUM_PATCHES) + 1.0)

    assert weighted[10:13].repeats.weights.tolist() == [11, 12, 13]
    nothing = selection.weighted([0, *range(1, NUM_PATCHES)])[:1]
    assert nothing.repeats.weights.tolist() == [0]
    with pytest.raises(NotFoundError, match="all weights are 0"):
        RawLoader(nothing)
    assert weighted[[5, 2]].repeats.weights.tolist() == [6, 3]
    with pytest.raises(ValueError, match="a map-style dataset takes each patch once"):
        RawPatches(weighted)


def test_an_export_refuses_weights_with_the_way_out(selection, tmp_path):
    with pytest.raises(ValueError, match=r"takes each patch once.*before weighted\(\) or balanced\(\)"):
        selection.balanced().export_lmdb(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- mixtures --------------------------------------------------------------------------------------------


def test_roots_are_streamed_as_one(selection, other_root, pixels):
    mixture = rc.concat([selection, rc.open(other_root).search()])
    loader = RawLoader(mixture, seed=1, **OPTIONS)

    batches = epoch_of(loader)

    assert len(mixture) == len(mixture.patch_ids) == 84
    assert counted(batches) == collections.Counter(range(84))
    every = np.concatenate([pixels, maps_of(rc.open(other_root).search())])
    for batch in batches:
        np.testing.assert_array_equal(batch["map"], every[batch["index"]])
    assert loader.stats().delivered == expected_delivery(mixture, epoch=0)
    assert len({tuple(b["index"] >= NUM_PATCHES) for b in batches}) > 1


def test_proportions_hold_in_every_epoch_and_on_any_ranks(selection, other_root):
    mixture = rc.concat([selection, rc.open(other_root).search()], proportions=[1, 3], num_samples=100)

    for epoch in range(2):
        alone = epoch_of(RawLoader(mixture, seed=1, epoch=epoch, **{**OPTIONS, "batch_size": 15}))
        ranks = [
            epoch_of(
                RawLoader(mixture, seed=1, epoch=epoch, rank=r, world_size=3, **{**OPTIONS, "batch_size": 5})
            )
            for r in range(3)
        ]
        seen = counted(alone)
        assert (sum(n for i, n in seen.items() if i < NUM_PATCHES), sum(seen.values())) == (25, 100)
        for step, whole in enumerate(alone):
            together = np.concatenate([r[step]["index"][r[step]["valid"]] for r in ranks])
            assert sorted(together) == sorted(whole["index"])


def test_weights_of_the_parts_count(selection, other_root):
    mixture = rc.concat([selection.weighted(np.full(NUM_PATCHES, 2.0)), rc.open(other_root).search()])

    seen = counted(RawLoader(mixture, **OPTIONS))

    assert [seen[i] for i in (0, NUM_PATCHES - 1, NUM_PATCHES, 83)] == [2, 2, 1, 1]


def test_a_root_and_an_export_are_mixed(selection, other_root, tmp_path):
    rc.open(other_root).search().export_lmdb(tmp_path / "out")
    mixture = rc.concat([selection, rc.open(tmp_path / "out").search()])

    assert counted(RawLoader(mixture, **OPTIONS)) == collections.Counter(range(84))


def test_what_cannot_be_mixed_is_refused(selection, other_root, tmp_path):
    other = rc.open(other_root).search()
    with pytest.raises(ValueError, match="at least one selection"):
        rc.concat([])
    with pytest.raises(TypeError, match="concat takes selections, not a Dataset"):
        rc.concat([rc.open(other_root)])
    with pytest.raises(ValueError, match="proportions must be 2 positive numbers"):
        rc.concat([selection, other], proportions=[1, 0])
    with pytest.raises(NotFoundError, match="selection 1 has nothing to mix"):
        rc.concat([selection, rc.Selection(other.dataset, other.table, other.rows[:0])])
    table = pa.table({"patch_id": other.patch_ids, "w": np.arange(24.0)})
    rc.write_table(tmp_path / "w", rc.open(other_root), table=table, name="w", title="W")
    with pytest.raises(ValueError, match=r"'w:w' is in batches of .* alone"):
        RawLoader(rc.concat([selection, rc.open(other_root, layers=[tmp_path / "w"]).search()]), **OPTIONS)


def test_repeats_are_taken_with_patches():
    repeats = Repeats(weights=np.array([1.0, 2.0, 3.0]), passes=2)

    assert repeats.taken(np.array([2, 0])).weights.tolist() == [3, 1]
    assert len(repeats.taken(np.array([], np.int64)).weights) == 0
    assert Delivered(epoch=0).digest == "0" * 16
