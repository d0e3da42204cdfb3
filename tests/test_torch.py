"""The PyTorch face: tensors, DataLoader workers, resuming, distributed ranks, and the input of models."""

# ruff: noqa: F811 - fixtures are imported from the tests of the raw loader

import multiprocessing
import pickle
import shutil
import sys
import textwrap
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import reben_cloud as rc
from reben_cloud.bigearthnet.bands import BAND_SETS, BAND_SETS_V011, BANDS, STATISTICS_MEAN, STATISTICS_STD
from reben_cloud.errors import ForkError
from reben_cloud.stream import RawLoader
from tests.forked import ForkServer
from tests.test_stream import NUM_PATCHES, check_pixels, epoch_of, root, selection, truth  # noqa: F401

torch = pytest.importorskip("torch")

from reben_cloud.torch import ModelInput, StreamDataset, StreamLoader  # noqa: E402


def as_arrays(loader):
    return [{name: tensor.numpy().copy() for name, tensor in batch.items()} for batch in loader]


def workers_context(name):
    return multiprocessing.get_context(name)


def test_the_tensors_are_the_arrays_of_the_raw_loader(selection, truth):
    batches = as_arrays(StreamLoader(selection, batch_size=16, seed=4))

    for got, expected in zip(batches, epoch_of(RawLoader(selection, batch_size=16, seed=4)), strict=True):
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    check_pixels(batches, truth)


def test_tensors_that_are_held_are_never_overwritten(selection, truth):
    held = [batch for _ in range(2) for batch in StreamLoader(selection, batch_size=16)]

    check_pixels([{n: t.numpy() for n, t in b.items()} for b in held], truth)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.slow
def test_workers_of_a_dataloader_share_out_the_epoch(selection, truth, method):
    dataset = StreamDataset(selection, batch_size=8)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context=workers_context(method)
    )

    batches = as_arrays(loader)

    found = np.concatenate([b["index"][b["valid"]] for b in batches])
    assert np.array_equal(np.sort(found), np.arange(NUM_PATCHES))
    check_pixels(batches, truth)


def test_without_workers_the_dataset_is_the_loader(selection):
    loader = torch.utils.data.DataLoader(StreamDataset(selection, batch_size=8, seed=1), batch_size=None)

    got, expected = as_arrays(loader), as_arrays(StreamLoader(selection, batch_size=8, seed=1))

    assert [b["index"].tolist() for b in got] == [b["index"].tolist() for b in expected]


def test_a_fork_is_refused_with_the_way_out(selection):
    dataset = StreamDataset(selection, batch_size=8)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context=workers_context("fork")
    )

    with (
        pytest.raises(ForkError, match="multiprocessing_context='forkserver' or 'spawn'"),
        warnings_of_fork(),
    ):
        next(iter(loader))


def warnings_of_fork():
    return pytest.warns() if sys.version_info >= (3, 12) else _nothing()


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_rank_and_world_size_come_from_torch_distributed(selection, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        loader = StreamLoader(selection, batch_size=8)
    finally:
        torch.distributed.destroy_process_group()

    assert loader._raw._steps.world_size == 1


class Workers:
    """A DataLoader's workers, in this process and in turns: each runs ahead of what is taken, as real ones do."""

    def __init__(self, monkeypatch, make, count, states=None, turn=0):
        self.datasets, self.iterators, self.ahead = [], [], [[] for _ in range(count)]
        self.states, self.turn = [], turn
        for worker in range(count):
            info = SimpleNamespace(id=worker, num_workers=count)
            monkeypatch.setattr("reben_cloud.torch.get_worker_info", lambda info=info: info)
            dataset = pickle.loads(pickle.dumps(make()))
            if states:
                dataset.load_state_dict(states[worker])
            self.datasets.append(dataset)
            self.iterators.append(iter(dataset))
            self.states.append(dataset.state_dict())

    def next_epoch(self):
        self.iterators = [iter(dataset) for dataset in self.datasets]
        self.states = [dataset.state_dict() for dataset in self.datasets]
        self.ahead, self.turn = [[] for _ in self.datasets], 0

    def take(self, ahead):
        """The next batch in turn, and None where the epoch ends; each worker is `ahead` batches further."""
        for _ in self.datasets:
            worker, self.turn = self.turn, (self.turn + 1) % len(self.datasets)
            waiting = self.ahead[worker]
            while len(waiting) <= ahead:
                batch = next(self.iterators[worker], None)
                index = None if batch is None else batch["index"][batch["valid"]].tolist()
                waiting.append((index, self.datasets[worker].state_dict()))
            index, self.states[worker] = waiting.pop(0)
            if index is not None:
                return index
        return None

    def rest(self, ahead):
        return list(iter(lambda: self.take(ahead), None))


@pytest.mark.slow
@given(
    count=st.integers(1, 4),
    batch_size=st.integers(3, 40),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
    ahead=st.integers(0, 4),
    stop=st.floats(0, 1),
)
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_workers_stopped_anywhere_give_the_rest_and_then_the_next_epoch(
    selection, monkeypatch, count, batch_size, drop_last, epoch, ahead, stop
):
    assume(not drop_last or batch_size * count <= NUM_PATCHES)

    def make():
        options = {"batch_size": batch_size, "drop_last": drop_last, "epoch": epoch, "lanes": 12}
        return StreamDataset(selection, modalities=["map"], **options)

    undisturbed = Workers(monkeypatch, make, count)
    first = undisturbed.rest(ahead)
    undisturbed.next_epoch()
    second = undisturbed.rest(ahead)
    number = round(stop * len(first))
    stopped = Workers(monkeypatch, make, count)
    taken = [stopped.take(ahead) for _ in range(number)]

    resumed = Workers(monkeypatch, make, count, states=stopped.states, turn=stopped.turn)

    assert taken + resumed.rest(ahead) == first
    resumed.next_epoch()
    assert resumed.rest(ahead) == second
    if not drop_last:
        assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(NUM_PATCHES))


def test_workers_that_are_left_early_agree_on_the_next_epoch(selection, monkeypatch):
    """One may have run to the end of its share by then, and the other not."""

    def make():
        return StreamDataset(selection, batch_size=30, modalities=["map"])

    workers = Workers(monkeypatch, make, 2)
    workers.take(ahead=0)
    workers.take(ahead=0)
    workers.take(ahead=2)  # the first is through with its share, the second is not

    workers.next_epoch()

    assert sorted(chain(*workers.rest(0))) == list(range(NUM_PATCHES))


@pytest.mark.parametrize("position", [0, 24, 96, NUM_PATCHES])
def test_a_loaders_state_goes_on_in_workers(selection, monkeypatch, position):
    expected = StreamLoader(selection, batch_size=8, modalities=["map"])
    order = np.concatenate([b["index"] for b in as_arrays(expected)]).tolist()
    state = {**StreamLoader(selection, batch_size=8, modalities=["map"]).state_dict(), "position": position}

    def make():
        return StreamDataset(selection, batch_size=8, modalities=["map"])

    rest = Workers(monkeypatch, make, 4, states=[state] * 4).rest(1)

    assert sorted(chain(*rest)) == sorted(order[position:])


def test_a_dataset_whose_workers_are_elsewhere_does_not_say_where_they_are(selection):
    dataset = StreamDataset(selection, batch_size=8)
    assert dataset.state_dict() == {}

    pickle.dumps(dataset)

    with pytest.raises(RuntimeError, match="use torchdata's StatefulDataLoader"):
        dataset.state_dict()


def test_another_epoch_lets_go_of_a_state_that_was_loaded(selection):
    dataset = StreamDataset(selection, batch_size=30, modalities=["map"])
    iterator = iter(dataset)
    next(iterator)
    state = dataset.state_dict()
    dataset.load_state_dict(state)
    dataset.set_epoch(1)

    assert len(list(dataset)) == 5
    assert dataset.state_dict()["epoch"] == 1


@pytest.mark.parametrize(
    ("workers", "persistent", "stop"),
    [
        pytest.param(0, False, 3, id="no workers"),
        pytest.param(0, False, 6, id="no workers, at the end"),
        pytest.param(0, False, None, id="no workers, finished"),
        pytest.param(2, False, 5, id="a worker is through"),
        pytest.param(2, True, 6, id="persistent, at the end"),
        pytest.param(2, True, None, id="persistent, finished"),
    ],
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata looks at every name of torch
def test_a_stateful_dataloader_resumes_where_it_was(selection, workers, persistent, stop):
    from torchdata import stateful_dataloader as stateful

    def make():
        return stateful.StatefulDataLoader(
            StreamDataset(selection, batch_size=25, modalities=["map"]),
            batch_size=None,
            num_workers=workers,
            persistent_workers=persistent,
            multiprocessing_context=workers_context("forkserver") if workers else None,
        )

    def epoch_of_it(loader):
        return [b["index"][b["valid"]].tolist() for b in loader]

    expected = make()
    first, second = epoch_of_it(expected), epoch_of_it(expected)
    stopped = make()
    iterator = iter(stopped)
    taken = [next(iterator)["index"].tolist() for _ in range(6 if stop is None else stop)]
    if stop is None:
        assert next(iterator, None) is None
    state = stopped.state_dict()
    del iterator
    resumed = make()
    resumed.load_state_dict(state)

    assert len(first) == 6
    assert len(taken) <= 6
    if stop is not None:
        assert epoch_of_it(resumed) == first[stop:]
    if persistent or not workers:  # those that are made for each epoch are told by `set_epoch`
        assert epoch_of_it(resumed) == second


TRAINING = """
    import json, os, sys
    import reben_cloud as rc
    from reben_cloud.torch import StreamLoader

    root, state_path, log_path = sys.argv[1:]
    loader = StreamLoader(rc.open(root).search(), batch_size=8, seed=3, modalities=["map"])
    if os.path.exists(state_path):
        loader.load_state_dict(json.load(open(state_path)))
    while loader.epoch < 3:
        for batch in loader:
            state = json.dumps(loader.state_dict())
            # What a trainer does: log the step, then save its state; both whole or not at all.
            with open(log_path, "a") as log:
                log.write(json.dumps([state, batch["index"].tolist()]) + chr(10))
            with open(state_path + ".new", "w") as file:
                file.write(state)
            os.replace(state_path + ".new", state_path)
            print("step", flush=True)
"""


@pytest.mark.slow
def test_killed_twenty_times_the_batches_are_those_of_one_undisturbed_run(root, selection, tmp_path):
    import json

    loader = StreamLoader(selection, batch_size=8, seed=3, modalities=["map"])
    expected = [b["index"].tolist() for _ in range(3) for b in loader]
    state, log = tmp_path / "state.json", tmp_path / "log.jsonl"
    random = np.random.default_rng(0)
    training = textwrap.dedent(TRAINING), root, state, log

    with ForkServer("import reben_cloud.torch") as server:
        for _ in range(20):
            process = server.start(*training)
            for _ in range(int(random.integers(1, 4))):
                if not process.stdout.readline():
                    break
            process.kill()
            process.communicate()
        last = server.start(*training)
        last.communicate()
        assert last.returncode == 0

    # A step whose state was not saved any more is done again: the same step with the same batch.
    steps = {}
    for line in log.read_text().splitlines():
        after, indices = json.loads(line)
        assert steps.setdefault(after, indices) == indices
    assert list(steps.values()) == expected


# -- model input ----------------------------------------------------------------------------------------


def reference_input(batch, bands, *, normalize):
    """As ConfigILM: each band to float32, torch's nearest interpolation, mean and deviation."""
    from reben_cloud.bigearthnet.bands import ARRAYS

    planes = []
    for band in bands:
        array = next(a for a, names in ARRAYS.items() if band in names)
        plane = batch[array][:, ARRAYS[array].index(band)].to(torch.float32).unsqueeze(1)
        plane = torch.nn.functional.interpolate(plane, 120, mode="nearest")
        if normalize:
            plane = (plane - STATISTICS_MEAN[band]) / STATISTICS_STD[band]
        planes.append(plane)
    return torch.cat(planes, dim=1)


@pytest.fixture(scope="module")
def batch(root):
    return next(iter(StreamLoader(rc.open(root).search(), batch_size=70)))


CASES = [(name, "v0.2.0") for name in BAND_SETS] + [(name, "v0.1.1") for name in BAND_SETS_V011]


@pytest.mark.parametrize("normalize", ["published", None])
@pytest.mark.parametrize(("bands", "models"), CASES)
def test_every_band_set_is_what_plain_torch_makes_of_it(batch, bands, models, normalize):
    names = BAND_SETS_V011[bands] if models == "v0.1.1" else BAND_SETS[bands]

    image = ModelInput(bands, normalize=normalize, models=models)(batch)

    assert image.dtype == torch.float32
    expected = reference_input(batch, names, normalize=normalize)
    torch.testing.assert_close(
        image, expected, rtol=0 if normalize is None else 1e-6, atol=0 if normalize is None else 1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [20, 60, 120, 128, 240])
def test_other_sizes_are_resampled_to_the_nearest_pixel(batch, size):
    image = ModelInput("ALL", size=size, normalize=None)(batch)

    for channel, band in enumerate(BAND_SETS["ALL"]):
        native = reference_input(batch, [band], normalize=False)
        step = 120 // BANDS[band].size_px
        expected = torch.nn.functional.interpolate(native[:, :, ::step, ::step], size, mode="nearest")
        torch.testing.assert_close(image[:, channel : channel + 1], expected, rtol=0, atol=0)


def test_an_image_can_be_written_where_the_caller_says(batch):
    out = torch.full((70, 14, 120, 120), -1.0)

    assert ModelInput("ALL")(batch, out=out) is out
    torch.testing.assert_close(out, ModelInput("ALL")(batch), rtol=0, atol=0)


def test_flips_are_flips_and_only_in_training(batch):
    plain = ModelInput("RGB")(batch)
    module = ModelInput("RGB", augment="flip")
    torch.manual_seed(0)

    flipped = module(batch)

    ways = [plain, plain.flip(-1), plain.flip(-2), plain.flip(-1, -2)]
    chosen = [[torch.equal(flipped[i], way[i]) for way in ways] for i in range(len(plain))]
    assert all(any(c) for c in chosen)
    assert np.argmax(np.array(chosen), axis=1).tolist() != [0] * len(plain)
    assert len(set(np.argmax(np.array(chosen), axis=1).tolist())) == 4
    torch.testing.assert_close(module.eval()(batch), plain, rtol=0, atol=0)


def test_statistics_are_no_weights_of_a_checkpoint():
    assert ModelInput("ALL").state_dict() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"bands": "15"}, r"'15' is neither a band set \(S1, RGB", id="set"),
        pytest.param({"bands": ["B99"]}, "'B99' is neither a band set", id="band"),
        pytest.param({"bands": "ALL", "normalize": "mine"}, "normalize must be", id="normalize"),
        pytest.param({"bands": "ALL", "augment": "cutmix"}, "augment must be", id="augment"),
        pytest.param({"bands": "ALL", "size": 0}, "at least 1 pixel", id="size"),
        pytest.param({"bands": "ALL", "models": "v9"}, "models must be", id="models"),
    ],
)
def test_wrong_arguments_of_the_model_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ModelInput(**arguments)


def test_a_batch_without_the_modality_is_refused(selection):
    batch = next(iter(StreamLoader(selection, batch_size=2, modalities=["s1"])))

    with pytest.raises(ValueError, match=r"the batch has no s2_10m.*stream the modality too"):
        ModelInput("RGB")(batch)


@pytest.mark.gpu
def test_on_a_gpu_the_image_is_the_one_of_the_cpu(batch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_device = {name: tensor.to("cuda", non_blocking=True) for name, tensor in batch.items()}

    image = ModelInput("ALL").cuda()(on_device)

    torch.testing.assert_close(image.cpu(), ModelInput("ALL")(batch), rtol=1e-6, atol=1e-6)


def test_on_the_real_pairs_the_input_is_configilms(shared, tmp_path):
    """The 24 real pairs, read by lmdb and safetensors and stacked as ConfigILM's sources say."""
    import lmdb
    from safetensors.numpy import load

    from reben_cloud.build import build, make_plan
    from reben_cloud.sources.recognise import open_source
    from reben_cloud.store import open_store

    # Copied: one process opens an environment once, and other tests do too.
    mock = shutil.copytree(shared / "data" / "configilm_benv2_mock", tmp_path / "mock")
    source, official = open_source(str(mock))
    build(make_plan(source, official, open_store(tmp_path / "root")))
    found = rc.open(tmp_path / "root").search()
    batch = next(iter(StreamLoader(found, batch_size=24)))
    image = ModelInput("S1_10m_20m")(batch)
    other = shutil.copytree(mock / "BigEarthNet-V2-LMDB", tmp_path / "other")
    env = lmdb.open(str(other), readonly=True, lock=False)
    names = found.column("reben:s1_name").to_pylist()
    for row, index in enumerate(batch["index"].tolist()):
        with env.begin() as txn:
            tensors = {
                **load(txn.get(found.patch_ids[index].encode())),
                **load(txn.get(names[index].encode())),
            }
        for channel, band in enumerate(BAND_SETS["S1_10m_20m"]):
            plane = torch.from_numpy(tensors[band].astype(np.float32))[None, None]
            plane = torch.nn.functional.interpolate(plane, 120, mode="nearest")[0, 0]
            expected = (plane - STATISTICS_MEAN[band]) / STATISTICS_STD[band]
            torch.testing.assert_close(image[row, channel], expected, rtol=1e-6, atol=1e-6)
    env.close()
