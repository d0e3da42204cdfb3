"""The whole-dataset benchmark, on a fifth of a percent of the real patches: computed shards, ranks, a kill."""

import numpy as np
import pyarrow as pa
import pytest
import xxhash

import reben_cloud as rc
from reben_cloud.bigearthnet.official import read_official
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.formats import tar
from reben_cloud.root import layout
from reben_cloud.root.documents import read_objects
from reben_cloud.stream import RawLoader, expected_delivery
from tests import computed
from tests.benchmarks import bench_full_epoch as bench

SHARD_SAMPLES = 32


@pytest.fixture(scope="module")
def folder(official_files, tmp_path_factory):
    official = read_official(official_files)
    rows = np.arange(0, official.num_rows, 500, dtype=np.int64)
    found = tmp_path_factory.mktemp("computed")
    computed.make_root(official.take(pa.array(rows)), found, shard_samples=SHARD_SAMPLES)
    return found


@pytest.fixture(scope="module")
def options(folder):
    with computed.serve(folder, REBEN) as found:
        yield found


def test_a_computed_shard_is_one_that_a_build_would_write(folder, options):
    dataset = rc.open(bench.URL, options[0])
    maker = computed.Maker(folder, REBEN)
    for number in (0, dataset.manifest.groups["train"].num_shards - 1):
        for modality in REBEN.modalities:
            path = layout.shard("train", modality.name, number)
            served = dataset.store.get(path)

            samples = tar.iter_samples(modality, served)

            again = tar.encode_shard(modality, samples, num_samples=maker.num_samples("train", number))
            assert served == again
            assert (
                xxhash.xxh3_64_intdigest(served) == read_objects(dataset.store, dataset.manifest)[path].xxh3
            )
            assert dataset.store.get_range(path, 1000, 5000) == served[1000:6000]
            assert {said["patch_id"] for _, _, said in samples} == {i for i, _, _ in samples}
            arrays = [modality.stack(payload) for _, payload, _ in samples]
            batch = {name: np.stack([one[name] for one in arrays]) for name in arrays[0]}
            expected = computed.expected_numbers(REBEN, [i for i, _, _ in samples])
            for name, numbers in computed.numbers_in(REBEN, {**batch, "index": np.arange(len(samples))}):
                np.testing.assert_array_equal(numbers, expected[name])


def test_the_numbers_of_patches_and_bands_differ(options):
    ids = rc.open(bench.URL, options[0]).search().patch_ids

    numbers = np.concatenate([n.reshape(-1) for n in computed.expected_numbers(REBEN, ids).values()])

    assert len(np.unique(numbers)) == len(ids) * 15
    assert np.isfinite(numbers.view(np.float32)).all()


def test_a_mix_up_of_patches_or_bands_shows(options):
    selection = rc.open(bench.URL, options[0]).search()
    batch = next(iter(RawLoader(selection, batch_size=8)))
    expected = {
        name: n[batch["index"]] for name, n in computed.expected_numbers(REBEN, selection.patch_ids).items()
    }

    def wrong():
        found = computed.numbers_in(REBEN, batch)
        return sum(np.count_nonzero(numbers != expected[name]) for name, numbers in found)

    assert wrong() == 0
    batch["s1"][[2, 5], 1] = batch["s1"][[5, 2], 1]
    assert wrong() == 2
    batch["s2_20m"][3, [0, 4]] = batch["s2_20m"][3, [4, 0]]
    assert wrong() == 4


def test_what_is_lost_or_comes_twice_is_noticed():
    bench.check_once(6, [np.array([[3, 1], [5, -1]]), np.array([[0, 2], [4, -1]])])
    for index, message in (
        ([0, 1, 2, 3, 4], "1 lost, 0 repeated"),
        ([0, 1, 2, 3, 3, 5], "1 lost, 1 repeated"),
    ):
        with pytest.raises(SystemExit, match=f"not exactly once: {message}"):
            bench.check_once(6, [np.array([index])])


@pytest.mark.slow
def test_ranks_give_every_patch_once_and_so_do_others_after_all_were_killed(options, tmp_path):
    selection = rc.open(bench.URL, options[0]).search()

    for ranks, steps in (
        bench.run_ranks(tmp_path, options, 3, global_batch=63),
        bench.kill_and_resume(tmp_path, options, len(selection), 3, 2, global_batch=66),
    ):
        bench.check_once(len(selection), steps)

        assert (
            bench.check_digest(selection, ranks)
            == expected_delivery(selection, epoch=0, seed=bench.SEED).digest
        )
        assert 0 < sum(rank.samples for rank in ranks) <= len(selection) == 1099
        assert [rank.wrong for rank in ranks] == [0] * len(ranks)
        with pytest.raises(SystemExit, match="the ranks delivered"):
            bench.check_digest(selection, ranks[1:])
