"""The digest of what was delivered: any loss, repetition or mix-up shows, over ranks and over resumptions."""

import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.errors import ChecksumError
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import Delivered, RawLoader, expected_delivery, merge_states
from reben_cloud.stream.delivered import hash_ids, hash_samples, sum_of
from reben_cloud.stream.proof import compare_delivery

NUM_PATCHES = 60
MASK = 2**64 - 1


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("delivered") / "root"
    source, official = open_source(f"synthetic:{NUM_PATCHES}")
    build(make_plan(source, official, open_store(folder), options=PlacementOptions(shard_samples=16)))
    return folder


@pytest.fixture
def selection(root):
    return rc.open(root).search()


def mixed(word):
    """The finaliser of SplitMix64, in Python's own integers."""
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ word >> 27) * 0x94D049BB133111EB) & MASK
    return word ^ word >> 31


def hash_of(patch_id, epoch, row=0, copy=0):
    """The hash of a sample as the documentation has it."""
    data = patch_id.encode()
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
    of_id = sum(mixed(w * (2 * i + 1) * 0x9E3779B97F4A7C15 & MASK) for i, w in enumerate(words))
    word = of_id + 0xD1342543DE82EF95 * (epoch + 1) + 0xAF251AF3B0F025B5 * row + 0x2545F4914F6CDD1D * copy
    return mixed(word & MASK)


def digest_of(patch_ids, epoch):
    return sum(hash_of(one, epoch) for one in patch_ids) & MASK


@given(
    st.lists(st.text("ABZ_09", min_size=1, max_size=70), min_size=1, max_size=20),
    st.integers(0, 10**6),
    st.data(),
)
def test_the_sum_is_the_documented_one(ids, epoch, data):
    numbers = st.lists(st.integers(0, 2**40), min_size=len(ids), max_size=len(ids))
    rows, copies = np.array(data.draw(numbers)), np.array(data.draw(numbers))
    hashes = hash_ids(np.array(ids).astype(np.bytes_))

    assert sum_of(hash_samples(hashes, epoch=epoch)) == digest_of(ids, epoch)
    expected = (
        sum(hash_of(i, epoch, int(r), int(c)) for i, r, c in zip(ids, rows, copies, strict=True)) & MASK
    )
    assert sum_of(hash_samples(hashes, epoch=epoch, rows=rows, copies=copies)) == expected


def test_the_hash_of_a_sample_never_changes():
    ids = np.array([b"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57", b"x"])

    assert hash_ids(ids).tolist() == GOLDEN_IDS
    assert [sum_of(hash_samples(hash_ids(ids[:1]), epoch=epoch)) for epoch in (0, 1, 99)] == GOLDEN_SUMS


GOLDEN_IDS = [10684081866610454980, 9204616229329205535]
GOLDEN_SUMS = [4958263926061366548, 2493339112289122782, 6601662576173309111]


def test_hashes_of_neighbouring_names_and_epochs_are_all_different():
    names = [
        f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{x:02d}_{y:02d}" for x in range(90) for y in range(90)
    ]
    ids = np.array(names).astype(np.bytes_)
    hashes = hash_ids(ids)
    found = {sum_of(hash_samples(hashes[i : i + 1], epoch=epoch)) for i in range(2000) for epoch in range(3)}

    assert len(np.unique(hashes)) == len(ids)
    assert len(found) == 6000
    bits = np.unpackbits(hashes.view(np.uint8)).reshape(len(ids), 64).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 0.03


@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_the_digests_of_ranks_add_up_to_the_one_of_the_selection(selection, world_size):
    loaders = [
        RawLoader(selection, batch_size=4, epoch=5, modalities=["map"], rank=r, world_size=world_size)
        for r in range(world_size)
    ]

    seen = [[selection.patch_ids[i] for b in loader for i in b["index"][b["valid"]]] for loader in loaders]

    total = Delivered(epoch=5)
    for ids, loader in zip(seen, loaders, strict=True):
        mine = loader.stats().delivered
        assert (mine.epoch, mine.num_samples, mine.value) == (5, len(ids), digest_of(ids, 5))
        total = total.plus(mine.num_samples, mine.value)
    assert total == expected_delivery(selection, epoch=5)
    assert total.value == digest_of(selection.patch_ids, 5)
    told = " ".join(loaders[-1].stats().to_text().split())
    assert f"digest {mine.digest} of {mine.num_samples} samples of epoch 5" in told


def test_a_loss_a_repetition_and_a_mix_up_show(selection):
    ids, right = selection.patch_ids, expected_delivery(selection, epoch=0)

    wrongs = [
        ids[1:],
        [*ids, ids[0]],
        [*ids[1:], ids[1]],
        [*ids[1:], "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_0_0"],
    ]

    for wrong in wrongs:
        with pytest.raises(ChecksumError, match="samples were lost, repeated or are others"):
            compare_delivery(right, f"{digest_of(wrong, 0):016x}")
    with pytest.raises(ChecksumError):
        compare_delivery(right, expected_delivery(selection, epoch=1).digest)
    compare_delivery(right, right.digest)


def states_after(selection, steps, *, world_size=1, batch_size=4, state=None):
    states = []
    for rank in range(world_size):
        loader = RawLoader(
            selection, batch_size=batch_size, modalities=["map"], rank=rank, world_size=world_size
        )
        if state is not None:
            loader.load_state_dict(state[rank] if isinstance(state, list) else state)
        iterator = iter(loader)
        for _ in itertools.islice(iterator, steps):
            pass
        states.append(loader.state_dict())
        iterator.close()
    return states


def finish(selection, world_size, state):
    """What all ranks say that they delivered when the epoch is over."""
    total = Delivered(epoch=0)
    for rank in range(world_size):
        loader = RawLoader(selection, batch_size=4, modalities=["map"], rank=rank, world_size=world_size)
        loader.load_state_dict(state[rank] if isinstance(state, list) else state)
        for _ in loader:
            pass
        mine = loader.stats().delivered
        total = total.plus(mine.num_samples, mine.value)
    return total


def test_a_resumed_digest_continues_on_any_number_of_ranks(selection):
    right = expected_delivery(selection, epoch=0)

    alone = states_after(selection, 3)
    several = states_after(selection, 2, world_size=4)
    later = states_after(selection, 1, world_size=3, state=merge_states(several))

    assert finish(selection, 1, alone[0]) == right
    assert finish(selection, 3, alone[0]) == right, "one rank's state is all there is"
    assert finish(selection, 4, several) == right, "each rank goes on from its own"
    for world_size in (1, 4, 7):
        assert finish(selection, world_size, merge_states(several)) == right
        assert finish(selection, world_size, merge_states(later)) == right
    assert merge_states(several)["delivered"] == merge_states(several)["position"] == 32
    assert merge_states(later)["delivered"] == 44


def test_from_one_ranks_state_alone_it_is_told_how_many_samples_are_accounted_for(selection):
    (first, *_) = states_after(selection, 2, world_size=4)

    total = finish(selection, 2, first)

    assert total.num_samples == NUM_PATCHES - 32
    assert total != expected_delivery(selection, epoch=0)


def test_a_state_without_a_digest_is_resumed(selection):
    (state,) = states_after(selection, 3)
    old = {k: v for k, v in state.items() if k not in ("digest", "delivered", "rank", "world_size")}

    total = finish(selection, 2, old)

    assert total.num_samples == NUM_PATCHES - 12


def test_states_are_integers_that_fit_64_bits(selection):
    for state in (states_after(selection, n)[0] for n in range(1, 9)):
        assert all(type(value) is int and -(2**63) <= value < 2**63 for value in state.values())


def test_states_of_two_places_are_not_merged(selection):
    early, late = states_after(selection, 1)[0], states_after(selection, 2)[0]

    with pytest.raises(ValueError, match="of two places: position is 4 in one and 8 in another"):
        merge_states([early, late])
    with pytest.raises(ValueError, match="at least one"):
        merge_states([])


def test_the_next_epoch_begins_with_nothing_and_the_last_one_stays_in_stats(selection):
    loader = RawLoader(selection, batch_size=16, modalities=["map"])
    for _ in loader:
        pass

    assert (loader.state_dict()["delivered"], loader.state_dict()["digest"]) == (0, 0)
    assert loader.stats().delivered == expected_delivery(selection, epoch=0)
    next(iter(loader))
    assert loader.stats().delivered.epoch == 1
    assert loader.stats().delivered.num_samples == 16


def test_what_drop_last_left_out_is_not_in_the_digest(selection):
    loader = RawLoader(selection, batch_size=16, seed=3, drop_last=True, modalities=["map"])
    for _ in loader:
        pass

    assert loader.stats().delivered == expected_delivery(selection, epoch=0, seed=3, num_samples=48)
    assert loader.stats().delivered != expected_delivery(selection, epoch=0, seed=4, num_samples=48)


def run(*arguments, check=True):
    command = [sys.executable, "-m", "reben_cloud.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def test_the_command_computes_it_and_compares(root, selection):
    found = expected_delivery(selection, epoch=2)

    said = run("verify-epoch", root, "--epoch", 2, "--digest", found.digest)
    as_json = run("verify-epoch", root, "--epoch", 2, "--json", "--samples", 16, "--seed", 3, "--lanes", 4)
    wrong = run("verify-epoch", root, "--epoch", 1, "--digest", found.digest, check=False)
    usage = run("verify-epoch", root, "--epoch", 1, "--digest", "12", check=False)

    assert said.stdout == f"epoch 2: 60 samples, digest {found.digest}, as was recorded\n"
    part = expected_delivery(selection, epoch=2, seed=3, lanes=4, num_samples=16)
    assert json.loads(as_json.stdout) == {"epoch": 2, "samples": 16, "digest": part.digest}
    assert wrong.returncode == 1
    assert "samples were lost, repeated or are others" in wrong.stderr
    assert usage.returncode == 2
    assert "a digest is 16 hex digits" in usage.stderr


@pytest.mark.parametrize("arguments", [{"num_samples": 61}, {"num_samples": -1}, {"epoch": -1}])
def test_an_impossible_epoch_is_refused(selection, arguments):
    with pytest.raises(ValueError, match=r"cannot have been delivered|must not be negative"):
        expected_delivery(selection, **{"epoch": 0, **arguments})


def test_it_costs_less_than_a_microsecond_a_sample():
    hashes = hash_ids(np.array([f"patch_{n}" for n in range(10_000)]).astype(np.bytes_))
    chosen = np.random.default_rng(0).choice(10_000, 64)

    best = min(_seconds(lambda: sum_of(hash_samples(hashes[chosen], epoch=3))) for _ in range(200))

    assert best / len(chosen) < 1e-6


def _seconds(work):
    begin = time.thread_time()
    work()
    return time.thread_time() - begin
