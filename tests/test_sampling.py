"""The order of samples: exactly once, the same for every world size, resumable, well mixed."""

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reben_cloud.bigearthnet import labels
from reben_cloud.sampling import (
    EpochOrder,
    Steps,
    design_effect,
    random_words,
    shuffled_order,
    stratified_order,
)

DIVISORS = [1, 2, 4, 8, 16, 32, 64]

# Written out for good: who resumes a run with the next release gets the same batches.
GOLDEN_WORDS = [9095666015081983751, 4371976278284222330, 18005362272274059652]
GOLDEN_EPOCH = [15, 14, 9, 18, 4, 12, 8, 11, 7, 19, 5, 13, 6, 1, 10, 0, 16, 3, 17, 2]
GOLDEN_SHUFFLED = [2, 0, 6, 3, 1, 7, 4, 5]
GOLDEN_STRATIFIED = [6, 2, 0, 11, 4, 3, 8, 10, 7, 1, 9, 12, 5]


LANES = st.sampled_from([1, 2, 3, 8, 12, 64])


@st.composite
def orders(draw, lanes=LANES):
    """Arguments of an EpochOrder over shards of which some samples are selected."""
    sizes = draw(st.lists(st.integers(0, 40), max_size=30))
    rows = [np.sort(np.random.default_rng(i).choice(40, n, replace=False)) for i, n in enumerate(sizes)]
    return {
        "counts": np.array(sizes, np.int64),
        "rows": np.concatenate([np.empty(0, np.int64), *rows]),
        "seed": draw(st.integers(0, 2**40)),
        "epoch": draw(st.integers(0, 1000)),
        "fingerprint": draw(st.sampled_from(["", "a1b2", "ffff"])),
        "lanes": draw(lanes),
        "window": draw(st.integers(1, 5)),
    }


def whole(order):
    return order.take(np.arange(order.num_samples))


@given(orders())
def test_every_sample_comes_exactly_once(arguments):
    order = EpochOrder(**arguments)

    assert np.array_equal(np.sort(whole(order)), np.arange(order.num_samples))


@given(orders(lanes=st.just(64)), st.sampled_from(DIVISORS), st.integers(1, 5), st.booleans())
def test_ranks_share_out_the_same_global_batches(arguments, world_size, per_rank, drop_last):
    order = EpochOrder(**arguments)
    steps = [
        Steps(
            num_samples=order.num_samples,
            batch_size=per_rank,
            rank=r,
            world_size=world_size,
            drop_last=drop_last,
        )
        for r in range(world_size)
    ]
    alone = Steps(num_samples=order.num_samples, batch_size=per_rank * world_size, drop_last=drop_last)
    assert {s.remaining(0) for s in steps} == {alone.remaining(0)}

    delivered = []
    for step in range(alone.remaining(0)):
        start = step * alone.global_batch
        together = np.sort(np.concatenate([s.numbers(start) for s in steps]))
        assert np.array_equal(together, alone.numbers(start))
        delivered.append(together)

    seen = np.concatenate([np.empty(0, np.int64), *delivered])
    left_out = order.num_samples % alone.global_batch if drop_last else 0
    assert np.array_equal(seen, np.arange(order.num_samples - left_out))


@given(orders(), st.integers(0, 2000))
def test_the_schedule_names_every_block_that_is_still_needed(arguments, start):
    order = EpochOrder(**arguments)
    world_sizes = [w for w in DIVISORS if order.lanes % w == 0]

    for world_size in world_sizes:
        found = []
        for rank in range(world_size):
            for lane, number in order.schedule(rank, world_size, start=start):
                block = order.block(lane, number)
                k = (block.start + np.arange(len(block.samples))) * order.lanes + lane
                assert lane % world_size == rank
                found.append(k[k >= start])
                assert np.array_equal(order.take(k), block.samples)
        expected = np.arange(min(start, order.num_samples), order.num_samples)
        assert np.array_equal(np.sort(np.concatenate([np.empty(0, np.int64), *found])), expected)


@given(orders(), st.data())
def test_any_part_of_an_epoch_is_computed_without_the_rest(arguments, data):
    order = EpochOrder(**arguments)
    if order.num_samples == 0:
        return
    k = np.array(data.draw(st.lists(st.integers(0, order.num_samples - 1), max_size=20)), np.int64)

    assert np.array_equal(EpochOrder(**arguments).take(k), whole(order)[k])


@given(orders(), st.randoms(use_true_random=False))
def test_without_shuffling_the_order_is_the_one_given(arguments, random):
    given_order = list(range(int(arguments["counts"].sum())))
    random.shuffle(given_order)

    order = EpochOrder(**arguments, in_order=np.array(given_order, np.int64))

    assert whole(order).tolist() == given_order


def test_epochs_seeds_and_datasets_share_nothing():
    counts, rows = np.full(40, 64), np.tile(np.arange(64), 40)
    keys = [(seed, epoch, name) for seed in range(4) for epoch in range(4) for name in ("a", "b")]
    found = [whole(EpochOrder(counts, rows, seed=s, epoch=e, fingerprint=f)) for s, e, f in keys]

    for i, one in enumerate(found):
        for other in found[:i]:
            # Independent orders agree in one place on average; a shard that comes at the same time, in a few more.
            assert np.count_nonzero(one == other) < 64


def test_the_words_of_an_order_never_change():
    assert random_words(3, "x", 1).tolist() == GOLDEN_WORDS


def test_one_epoch_written_out():
    counts = np.array([4, 0, 3, 4, 4, 1, 4])
    rows = np.concatenate([np.arange(n) for n in counts])

    order = EpochOrder(counts, rows, seed=7, epoch=3, fingerprint="reben", lanes=2, window=2)

    assert whole(order).tolist() == GOLDEN_EPOCH


def test_write_orders_written_out():
    strata = np.repeat([5, 2, 9], [4, 6, 3])

    assert shuffled_order(8, seed=3, stream=1).tolist() == GOLDEN_SHUFFLED
    assert stratified_order(strata, seed=3, shard_samples=4, stream=1).tolist() == GOLDEN_STRATIFIED


@given(st.lists(st.integers(0, 9), max_size=300), st.integers(1, 40), st.integers(0, 99))
def test_a_stratified_order_gives_every_shard_its_share(strata, shard_samples, seed):
    strata = np.array(strata, np.int64)

    order = stratified_order(strata, seed=seed, shard_samples=shard_samples)

    assert np.array_equal(np.sort(order), np.arange(len(strata)))
    num_full = len(strata) // shard_samples
    for shard in range(num_full):
        mine = strata[order[shard * shard_samples : (shard + 1) * shard_samples]]
        for stratum in range(10):
            fair = shard_samples * np.count_nonzero(strata == stratum) / len(strata)
            # A range that two strata share can fall to either: one sample at each end, and rounding.
            assert abs(np.count_nonzero(mine == stratum) - fair) <= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"seed": -1}, "must not be negative", id="seed"),
        pytest.param({"lanes": 0}, "at least 1", id="lanes"),
        pytest.param({"window": 0}, "at least 1", id="window"),
        pytest.param({"rows": np.arange(3)}, "4 samples are counted", id="rows"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpochOrder(**{"counts": np.array([4]), "rows": np.arange(4), **arguments})


def test_a_world_size_that_does_not_divide_the_lanes_is_refused_with_the_way_out():
    order = EpochOrder(np.array([4]), np.arange(4), lanes=8)

    with pytest.raises(ValueError, match="pass lanes=9"):
        order.schedule(0, 3)


def test_a_position_that_other_ranks_cannot_continue_is_refused():
    with pytest.raises(ValueError, match="take a number of ranks that divides it"):
        Steps(num_samples=100, batch_size=2, world_size=4).check_start(6)


@pytest.fixture(scope="module")
def train(shared):
    """(multi-hot labels, product number) of the recommended train patches, in patch id order."""
    path = shared / "data" / "bigearthnet_pipeline" / "metadata.parquet"
    table = pq.read_table(path, columns=["patch_id", "labels", "split"])
    table = table.filter(pc.equal(table["split"], "train")).sort_by("patch_id")
    products = pc.utf8_slice_codeunits(table["patch_id"].combine_chunks(), 0, -6).dictionary_encode()
    return labels.encode_many(table["labels"]).astype(np.float32), products.indices.to_numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "most"),
    [
        # Of a true random permutation: 1, plus what 3,700 batches let chance do.
        pytest.param("shuffled", 1.03, id="shuffled"),
        pytest.param("stratified", 0.85, id="stratified"),
    ],
)
def test_batches_of_the_real_train_split_mix_as_well_as_random_ones_or_better(train, kind, most):
    multi_hot, products = train
    if kind == "stratified":
        stored = stratified_order(products, seed=0, shard_samples=256)
    else:
        stored = shuffled_order(len(products), seed=0)
    num_shards = -(-len(products) // 256)
    counts = np.bincount(np.arange(len(products)) // 256, minlength=num_shards)
    order = EpochOrder(counts, np.arange(len(products)) % 256, seed=1)

    samples = stored[whole(order)]
    batches = list(samples[: len(samples) // 64 * 64].reshape(-1, 64))

    assert design_effect(multi_hot, batches) <= most
    one_hot = np.eye(products.max() + 1, dtype=np.float32)[products]
    assert design_effect(one_hot, batches) <= min(most, 1.03)
    # A batch reaches over the whole stored order, not over a neighbourhood of it.
    position = np.empty(len(stored), np.int64)
    position[stored] = np.arange(len(stored))
    places = [np.ptp(position[b]) for b in batches]
    assert np.median(places) > 0.7 * len(stored)
