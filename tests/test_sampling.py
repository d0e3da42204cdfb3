"""The order of samples: exactly once, the same for every world size, resumable, well mixed."""

from dataclasses import replace

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


RANKS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 64])


def all_ranks(order, world_size, batch_size, *, drop_last=False):
    return [
        Steps(
            num_samples=order.num_samples,
            batch_size=batch_size,
            lanes=order.lanes,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        )
        for rank in range(world_size)
    ]


@given(orders(), RANKS, st.integers(1, 5), st.booleans(), st.integers(0, 200))
def test_ranks_share_out_the_global_batches_from_any_position(
    arguments, world_size, per_rank, drop_last, start
):
    order = EpochOrder(**arguments)
    steps = all_ranks(order, world_size, per_rank, drop_last=drop_last)
    global_batch = per_rank * world_size
    start = min(start, order.num_samples)
    left = order.num_samples - start
    num_steps = left // global_batch if drop_last else -(-left // global_batch)

    assert {s.remaining(start) for s in steps} == {num_steps}
    for position in range(start, start + num_steps * global_batch, global_batch):
        stop = min(position + global_batch, order.num_samples)
        shares = [s.numbers(position) for s in steps]
        assert max(map(len, shares)) <= per_rank
        assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(position, stop))
        if stop - position == global_batch:
            assert {len(share) for share in shares} == {per_rank}
        for rank, share in enumerate(shares):
            assert len(set(share.tolist())) == len(share)
            ranks, rows = steps[0].places(share, start)
            assert ranks.tolist() == [rank] * len(share)
            assert rows.tolist() == list(range(len(share)))
            filled = np.full(len(share), -1)
            for lane, some in steps[rank].runs(position):
                assert (share[some] % order.lanes == lane).all()
                assert (np.diff(share[some]) > 0).all()
                filled[some] += 1
            assert not filled.any()


@pytest.mark.parametrize(
    ("world_size", "pairs"), [(1, 8), (2, 8), (8, 8), (3, 10), (6, 12), (7, 14), (12, 16), (16, 16)]
)
def test_ranks_share_as_few_lanes_as_they_can(world_size, pairs):
    steps = Steps(num_samples=10**5, batch_size=48, lanes=8, world_size=world_size)

    assert steps.readers().sum() == pairs == 8 + world_size - np.gcd(8, world_size)
    read = {
        (r, lane)
        for r in range(world_size)
        for position in range(0, 10**5, steps.global_batch)
        for lane, _ in replace(steps, rank=r).runs(position)
    }
    assert len(read) == pairs


def test_a_rank_of_a_number_that_divides_the_lanes_reads_every_so_many_samples():
    steps = Steps(num_samples=100, batch_size=3, lanes=8, rank=1, world_size=4)

    assert steps.numbers(24).tolist() == [25, 29, 33]
    assert steps.numbers(26).tolist() == [29, 33, 37], "and so from a position that they do not divide"


@given(orders(), RANKS, st.integers(1, 9), st.integers(0, 2000))
def test_the_schedule_names_every_block_that_is_still_needed(arguments, world_size, batch_size, start):
    order = EpochOrder(**arguments)
    start = min(start, order.num_samples)

    found = []
    for steps in all_ranks(order, world_size, batch_size):
        firsts = []
        for lane, number in order.schedule(steps, start):
            block = order.block(lane, number)
            numbers = order.numbers(block)
            assert np.array_equal(order.take(numbers), block.samples)
            numbers = numbers[numbers >= start]
            numbers = numbers[steps.places(numbers, start)[0] == steps.rank]
            assert lane % steps.classes == steps.rank % steps.classes
            firsts.append(numbers[0])
            found.append(numbers)
        assert firsts == sorted(firsts), "in the order of first use"
    expected = np.arange(start, order.num_samples)
    assert np.array_equal(np.sort(np.concatenate([np.empty(0, np.int64), *found])), expected)


def test_no_block_is_scheduled_that_only_dropped_samples_need():
    order = EpochOrder(np.array([50, 50]), np.tile(np.arange(50), 2), lanes=1)
    steps = Steps(num_samples=100, batch_size=40, lanes=1, drop_last=True)

    assert order.schedule(steps, 45) == [(0, 0), (0, 1)]
    assert order.schedule(steps, 5) == [(0, 0), (0, 1)]
    assert order.schedule(steps, 10) == [(0, 0), (0, 1)]
    assert order.schedule(steps, 9) == [(0, 0), (0, 1)]
    assert order.schedule(steps, 65) == []


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
