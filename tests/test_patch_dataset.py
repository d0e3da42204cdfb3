"""Samples by number against the pixels themselves: any order, samplers, workers, trainers of others, S3 with faults."""

# ruff: noqa: F811 - fixtures are imported from the tests of the raw loader

import pickle
import shutil
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.errors import ChecksumError, ForkError, NotFoundError
from reben_cloud.hosted.publish import index_hosted
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import RawPatches
from reben_cloud.stream.readers.shards import plan_ranges
from tests.conftest import PATIENT_S, missing
from tests.test_stream import NUM_PATCHES, SHARD_SAMPLES, root, s3_root, selection, truth  # noqa: F401

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, WeightedRandomSampler  # noqa: E402

from reben_cloud.bigearthnet.reben import REBEN  # noqa: E402
from reben_cloud.torch import ImageDataset, ModelInput, PatchDataset  # noqa: E402
from tests.test_torch import warnings_of_fork  # noqa: E402


def check(batch, numbers, selection, truth):
    """That a batch is the samples of these numbers, pixels and labels, in order."""
    pixels = truth.keys() & batch.keys()
    assert pixels
    for name in pixels:
        np.testing.assert_array_equal(np.asarray(batch[name]), truth[name][numbers], err_msg=name)
    labels = REBEN.classes.encode(selection.column("reben:labels"))
    np.testing.assert_array_equal(np.asarray(batch["labels"]), labels[numbers].astype(np.float32))
    np.testing.assert_array_equal(np.asarray(batch["index"]), numbers)


@pytest.fixture(scope="module")
def whole(root):
    return RawPatches(rc.open(root).search())


# -- numbers ----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.integers(-NUM_PATCHES, NUM_PATCHES - 1), max_size=12))
def test_any_numbers_in_any_order_are_their_patches(whole, truth, numbers):
    batch = whole.take(numbers)

    check(batch, np.array(numbers, np.int64) % NUM_PATCHES, whole._stored.selection, truth)


def test_a_selection_in_its_own_order_has_its_own_numbers(root, truth):
    everything = rc.open(root).search()
    some = rc.open(root).search(split="train", sortby="-id")
    assert 0 < len(some) < NUM_PATCHES
    where = np.array([everything.patch_ids.index(i) for i in some.patch_ids])

    batch = RawPatches(some).take(slice(None))

    np.testing.assert_array_equal(batch["index"], np.arange(len(some)))
    np.testing.assert_array_equal(batch["s2_20m"], truth["s2_20m"][where])


def test_a_sample_is_a_row_of_a_batch(selection, truth):
    dataset = PatchDataset(selection)

    sample = dataset[-3]

    assert {name: (t.dtype, tuple(t.shape)) for name, t in sample.items()} == {
        "s2_10m": (torch.uint16, (4, 120, 120)),
        "s2_20m": (torch.uint16, (6, 60, 60)),
        "s2_60m": (torch.uint16, (2, 20, 20)),
        "s1": (torch.float32, (2, 120, 120)),
        "map": (torch.uint16, (120, 120)),
        "labels": (torch.float32, (19,)),
        "index": (torch.int64, ()),
    }
    check({n: t[None] for n, t in sample.items()}, np.array([NUM_PATCHES - 3]), selection, truth)


@pytest.mark.parametrize("at", [NUM_PATCHES, -NUM_PATCHES - 1])
def test_a_number_out_of_range_is_an_index_error(whole, selection, at):
    with pytest.raises(IndexError, match=f"sample {at} is out of range: there are 150"):
        whole[at]
    with pytest.raises(IndexError, match=f"sample {at} is out of range"):
        PatchDataset(selection)[at]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"fetch_threads": 0}, ValueError, "fetch_threads must be at least 1", id="threads"),
        pytest.param({"form": "lmdb"}, ValueError, "form must be 'shards' or 'zarr'", id="form"),
        pytest.param({"modalities": ["s3"]}, ValueError, "modality 's3' is not in", id="modality"),
        pytest.param({"cache_bytes": 1}, ValueError, "cache_dir, which is not given", id="cache"),
        pytest.param({"memory_bytes": -1}, ValueError, "memory_bytes must not be negative", id="memory"),
        pytest.param({"memory_bytes": 1, "cache_dir": "x"}, ValueError, "give one of them", id="kept twice"),
    ],
)
def test_wrong_arguments_are_refused_when_it_is_made(selection, arguments, error, message):
    with pytest.raises(error, match=message):
        PatchDataset(selection, **arguments)


def test_an_empty_selection_is_refused_with_the_reason(root):
    with pytest.raises(NotFoundError, match=r"nothing to read: no patch of .* fits datetime='1999'"):
        PatchDataset(rc.open(root).search(datetime="1999"))


def test_weights_are_left_to_the_sampler(root):
    with pytest.raises(ValueError, match="takes each patch once, and this selection has weights"):
        PatchDataset(rc.open(root).search().balanced())


def test_a_damaged_payload_is_never_delivered(root, tmp_path):
    shutil.copytree(root, tmp_path / "root")
    dataset = PatchDataset(rc.open(tmp_path / "root").search(), modalities=["map"])
    path = next((tmp_path / "root").glob("shards/train/map/*-000000.tar"))
    data = bytearray(path.read_bytes())
    data[5 * 31232 + 10_000] ^= 1
    path.write_bytes(data)

    failed = {}
    for at in range(len(dataset)):
        try:
            dataset[at]
        except ChecksumError as error:
            failed[at] = str(error)

    assert ["in row 5" in text for text in failed.values()] == [True]
    with pytest.raises(ChecksumError, match="row 5"):
        dataset.__getitems__([0, *failed, 1])


# -- other forms and what layers say ------------------------------------------------------------------------


def test_zarr_and_exports_and_references_have_the_same_samples(root, truth, tmp_path, monkeypatch):
    monkeypatch.setenv("REBEN_CACHE", str(tmp_path / "cache"))
    selection = rc.open(root).search()
    selection.export_lmdb(tmp_path / "lmdb")
    shutil.copytree(tmp_path / "lmdb", tmp_path / "hosted")
    (tmp_path / "hosted" / "export.json").unlink()
    (tmp_path / "hosted" / "patches.parquet").unlink()
    index_hosted(tmp_path / "hosted", tmp_path / "reference")
    numbers = np.array([149, 3, 3, 77, 0, 20, 21])

    for found, options in (
        (selection, {"form": "zarr"}),
        (rc.open(tmp_path / "lmdb").search(), {}),
        (rc.open(tmp_path / "reference").search(), {}),
    ):
        where = np.array([found.patch_ids.index(selection.patch_ids[n]) for n in numbers])
        batch = RawPatches(found, **options).take(where)
        np.testing.assert_array_equal(batch["index"], where)
        for name in truth:
            np.testing.assert_array_equal(batch[name], truth[name][numbers])


@pytest.fixture
def texts(root, tmp_path):
    ids = rc.open(root).search().patch_ids
    frame = pd.DataFrame(
        [
            {"patch_id": i, "text": f"{i} {n}", "number": n}
            for p, i in enumerate(ids)
            for n in range(1 + p % 3)
        ]
    )
    layer = rc.write_table(tmp_path / "txt", rc.open(root), name="txt", table=frame)
    return rc.open(root, layers=[layer])


def test_a_patch_has_its_rows_by_every_rule(texts):
    ids = texts.search().patch_ids
    one = PatchDataset(texts.search().with_rows("txt", rule="one"), modalities=["map"])
    every = PatchDataset(texts.search().with_rows("txt", rule="all"), modalities=["map"])
    lists = PatchDataset(texts.search().with_rows("txt", rule="list"), modalities=["map"])

    epochs = []
    for epoch in range(3):
        one.set_epoch(epoch)
        epochs.append([sample["txt:text"] for sample in one.__getitems__(range(len(one)))])
    for at, patch_id in enumerate(ids):
        rows = {f"{patch_id} {n}" for n in range(1 + at % 3)}
        assert {texts[at] for texts in epochs} == rows
    assert len(every) == sum(1 + at % 3 for at in range(NUM_PATCHES))
    said = [(ids[s["index"]], s["txt:text"]) for s in every.__getitems__(range(len(every)))]
    assert said == [(i, f"{i} {n}") for at, i in enumerate(ids) for n in range(1 + at % 3)]
    batch = next(iter(DataLoader(lists, batch_size=4, collate_fn=PatchDataset.collate)))
    assert batch["txt:number"] == [[0], [0, 1], [0, 1, 2], [0]]
    assert batch["map"].shape == (4, 120, 120)


# -- samplers, workers, pickles ------------------------------------------------------------------------------


def test_samplers_of_torch_choose(selection, truth):
    dataset = PatchDataset(selection, modalities=["s2"])
    weights = np.zeros(NUM_PATCHES)
    weights[[7, 99]] = 1, 3

    weighted = DataLoader(dataset, batch_size=10, sampler=WeightedRandomSampler(weights.tolist(), 40))
    random = DataLoader(dataset, batch_size=32, sampler=RandomSampler(dataset))
    ranks = [
        DataLoader(dataset, batch_size=20, sampler=DistributedSampler(dataset, num_replicas=3, rank=rank))
        for rank in range(3)
    ]

    drawn = [batch["index"].numpy() for batch in weighted]
    assert set(np.concatenate(drawn)) == {7, 99}
    for batch in random:
        check(batch, batch["index"].numpy(), selection, truth)
    for loaders in ([random], ranks):
        seen = np.concatenate([batch["index"] for loader in loaders for batch in loader])
        assert np.array_equal(np.sort(seen), np.arange(NUM_PATCHES))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_deliver_what_the_sampler_wants(selection, truth, method):
    loader = DataLoader(
        PatchDataset(selection), batch_size=8, shuffle=True, num_workers=2, multiprocessing_context=method
    )

    batches = list(loader)

    assert np.array_equal(np.sort(np.concatenate([b["index"] for b in batches])), np.arange(NUM_PATCHES))
    for batch in batches:
        check(batch, batch["index"].numpy(), selection, truth)


def test_a_fork_is_refused_with_the_way_out(selection):
    loader = DataLoader(PatchDataset(selection), batch_size=8, num_workers=1, multiprocessing_context="fork")

    with (
        pytest.raises(ForkError, match="multiprocessing_context='forkserver' or 'spawn'"),
        warnings_of_fork(),
    ):
        next(iter(loader))


def test_a_copy_takes_no_handle_along_and_reads_the_same(selection, truth):
    dataset = PatchDataset(selection)
    dataset[0]  # opens files, starts threads

    data = pickle.dumps(dataset)
    copy = pickle.loads(data)

    assert {"_reader", "_threads", "counters"} <= dataset._raw.__dict__.keys()
    assert not {"_reader", "_threads", "counters"} & copy._raw.__dict__.keys()
    assert len(data) < 1000 * NUM_PATCHES  # tables, no pixels
    numbers = np.array([5, 149, 5])
    check(PatchDataset.collate(copy.__getitems__(numbers)), numbers, selection, truth)


def one_channel(sample):
    return sample["s2_10m"][2].float(), sample["labels"].argmax()


def test_a_transform_is_given_each_sample(selection, truth):
    dataset = PatchDataset(selection, modalities=["s2"], transform=one_channel)

    image, label = next(iter(DataLoader(dataset, batch_size=6)))

    np.testing.assert_array_equal(image, truth["s2_10m"][:6, 2].astype(np.float32))
    assert label.shape == (6,)
    assert dataset[1][0].shape == (120, 120)


# -- trainers of others --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata looks at every name of torch
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_dataloader_resumes_where_it_was(selection, workers):
    from torchdata import stateful_dataloader as stateful

    def make():
        return stateful.StatefulDataLoader(
            PatchDataset(selection, modalities=["map"]),
            batch_size=25,
            shuffle=True,
            num_workers=workers,
            generator=torch.Generator().manual_seed(4),
            multiprocessing_context="forkserver" if workers else None,
        )

    expected = [batch["index"].tolist() for batch in make()]
    stopped = make()
    iterator = iter(stopped)
    taken = [next(iterator)["index"].tolist() for _ in range(2)]
    state = stopped.state_dict()
    del iterator
    resumed = make()
    resumed.load_state_dict(state)

    assert taken == expected[:2]
    assert [batch["index"].tolist() for batch in resumed] == expected[2:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's own advice
def test_lightning_trains_on_it(selection):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

    class Plain(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model_input = ModelInput("RGB")
            self.head = torch.nn.Linear(3, 19)
            self.seen = []

        def training_step(self, batch, _):
            self.seen += batch["index"].tolist()
            logits = self.head(self.model_input(batch).mean(dim=(2, 3)))
            return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Plain()
    before = model.head.weight.detach().clone()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(PatchDataset(selection, modalities=["s2"]), batch_size=32, shuffle=True))

    assert sorted(model.seen) == sorted([*range(NUM_PATCHES)] * 2)
    assert not torch.equal(before, model.head.weight)


def for_transformers(sample):
    """What ViT of transformers takes: a picture of three bands, and labels as floats (several at a time)."""
    return {"pixel_values": sample["s2_10m"][[2, 1, 0]].float() / 10_000, "labels": sample["labels"]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' and accelerate's own advice
def test_the_trainer_of_transformers_trains_on_it(selection, tmp_path):
    try:
        import accelerate  # noqa: F401 - transformers imports it when a Trainer is made
        import transformers
    except ImportError as error:
        missing(f"transformers' Trainer needs {error.name}")

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=120,
        patch_size=24, num_labels=19, problem_type="multi_label_classification",
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    before = model.classifier.weight.detach().clone()
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=1,
            per_device_train_batch_size=16,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=PatchDataset(selection, modalities=["s2"], transform=for_transformers),
        eval_dataset=PatchDataset(selection[:20], modalities=["s2"], transform=for_transformers),
    )

    result, evaluated = trainer.train(), trainer.evaluate()

    assert result.global_step == -(-NUM_PATCHES // 16)
    assert 0 < evaluated["eval_loss"] < 2
    assert not torch.equal(before, model.classifier.weight.detach().cpu())


# -- S3 --------------------------------------------------------------------------------------------------------


def test_a_batch_from_s3_costs_the_requests_of_the_rule(s3_root, truth):
    selection = rc.open(*s3_root).search()
    dataset = RawPatches(selection, modalities=["s2", "map"])
    stored, numbers = dataset._stored, np.random.default_rng(3).permutation(NUM_PATCHES)[:30]

    check(dataset.take(numbers), numbers, selection, truth)

    patches = np.sort(dataset._order[numbers])
    expected = 0
    for shard in np.unique(stored.places.shard[patches]):
        mine = patches[stored.places.shard[patches] == shard]
        for modality in stored.modalities:
            ranges = plan_ranges(stored.places.row[mine], modality, int(stored.places.num_samples[shard]))
            expected += 1 if ranges is None else len(ranges)
    assert dataset.counters.requests == expected
    assert expected < 2 * len(numbers)


def test_with_a_cache_shards_are_fetched_once(s3_root, truth, tmp_path):
    selection = rc.open(*s3_root).search()
    dataset = PatchDataset(selection, modalities=["s2"], cache_dir=tmp_path / "cache")
    shards = len(dataset._raw._stored.places.shards)

    for _ in range(2):
        for batch in DataLoader(dataset, batch_size=3, shuffle=True):
            check(batch, batch["index"].numpy(), selection, truth)

    assert len(list((tmp_path / "cache").rglob("*.tar"))) == shards
    assert dataset._raw.counters.cache_hits > shards


def test_shards_that_are_kept_in_memory_are_read_once(root, selection, truth):
    dataset = PatchDataset(selection, modalities=["s2", "map"], memory_bytes=10**9)
    dataset = pickle.loads(pickle.dumps(dataset))  # as a worker has it
    read = []

    for _ in range(2):
        for batch in DataLoader(dataset, batch_size=3, shuffle=True):
            check(batch, batch["index"].numpy(), selection, truth)
        read.append(dataset._raw.counters.bytes_read)

    whole = sum(path.stat().st_size for m in ("s2", "map") for path in root.glob(f"shards/*/{m}/*.tar"))
    assert read[0] == read[1] == whole


def test_shards_that_do_not_fit_in_memory_are_read_as_before(selection, truth):
    dataset = PatchDataset(selection, modalities=["map"], memory_bytes=1_000)

    for batch in DataLoader(dataset, batch_size=7, shuffle=True):
        check(batch, batch["index"].numpy(), selection, truth)


def test_a_few_of_each_shard_are_not_worth_a_cache(s3_root, tmp_path):
    found = rc.open(*s3_root).search()
    rows = found.column("reben:shard_row").to_numpy()
    few = found[rows == SHARD_SAMPLES // 2]
    dataset = PatchDataset(few, modalities=["s2"], cache_dir=tmp_path / "cache")
    places = dataset._raw._stored.places

    list(DataLoader(dataset, batch_size=3, shuffle=True))

    assert dataset._raw.counters.requests == len(few)
    assert dataset._raw.counters.bytes_read < 0.3 * 163_328 * places.num_samples.sum()


def test_faults_of_the_store_are_mended(s3_root, truth, fault_proxy):
    url, options = s3_root
    selection = rc.open(url, {**options, "endpoint_url": fault_proxy.endpoint}).search()
    dataset = RawPatches(selection, modalities=["map"])
    for fault in ("flip", "503", "cut"):
        fault_proxy.add(".tar", fault, times=3)

    numbers = np.arange(0, NUM_PATCHES, 4)
    check(dataset.take(numbers), numbers, selection, truth)

    assert fault_proxy.num_faults() >= 3


SPAWNED = """
    import sys
    import threading
    from torch.utils.data import DataLoader
    import reben_cloud as rc
    from reben_cloud.torch import PatchDataset

    if __name__ == "__main__":
        url, options = sys.argv[1], eval(sys.argv[2])
        dataset = PatchDataset(rc.open(url, options).search(), modalities=["map"])
        dataset[0]
        loader = DataLoader(dataset, batch_size=16, num_workers=2, multiprocessing_context="spawn")
        print(sum(len(batch["index"]) for batch in loader))
        # Threads of torch's queues, which nobody waits for: if the process ends while one removes a semaphore, Python
        # warns that it leaked.
        for thread in threading.enumerate():
            if thread.name == "QueueFeederThread":
                thread.join()
"""


@pytest.mark.slow
def test_spawned_workers_read_s3_and_the_process_ends(s3_root, tmp_path):
    script = tmp_path / "spawned.py"
    script.write_text(textwrap.dedent(SPAWNED))

    done = subprocess.run(
        [sys.executable, script, s3_root[0], repr(s3_root[1])],
        capture_output=True, text=True, timeout=PATIENT_S, check=True,
    )  # fmt: skip

    assert done.stdout.split() == [str(NUM_PATCHES)]
    assert not done.stderr


# -- as torchgeo's datasets are -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bands", "options"),
    [
        pytest.param("ALL", {}, id="all"),
        pytest.param(("B04", "B03", "B02"), {"normalize": "published"}, id="normalised"),
        pytest.param(("VV",), {"size": 60}, id="radar"),
    ],
)
def test_images_and_labels_are_those_of_the_loader(selection, bands, options):
    dataset = pickle.loads(pickle.dumps(ImageDataset(selection, bands=bands, **options)))
    raw = RawPatches(selection).take([5, 0, 7])
    image = ModelInput(bands, **{"normalize": None, **options})(
        {n: torch.as_tensor(v) for n, v in raw.items()}
    )

    (batch,) = DataLoader(dataset, batch_size=3, sampler=[5, 0, 7])

    assert batch.keys() == {"image", "label"}
    assert torch.equal(batch["image"], image)
    assert torch.equal(batch["label"], torch.from_numpy(raw["labels"]).long())
    assert torch.equal(dataset[7]["image"], image[2])
    assert len(dataset) == len(selection)


@pytest.mark.parametrize("size", [None, 60])
def test_a_mask_has_the_numbers_of_the_classes(selection, size):
    dataset = pickle.loads(pickle.dumps(ImageDataset(selection, bands=("B04", "VV"), size=size, mask=True)))
    codes = RawPatches(selection, modalities=["map"]).take([4, 1])["map"]
    number_of = {code: n for n, codes_ in enumerate(REBEN.classes.codes) for code in codes_}
    expected = np.vectorize(lambda code: number_of.get(code, -1))(codes)[
        :, :: 120 // (size or 120), :: 120 // (size or 120)
    ]

    (batch,) = DataLoader(dataset, batch_size=2, sampler=[4, 1])

    assert batch["image"].shape == (2, 2, size or 120, size or 120)
    np.testing.assert_array_equal(batch["mask"].numpy(), expected)
    assert batch["mask"].dtype == torch.int64
    figure = dataset.plot({**dataset[4], "prediction": torch.full_like(batch["mask"][0], -1)})
    image, mask, prediction = figure.axes
    assert [image.get_title()[:6], mask.get_title(), prediction.get_title()] == [
        "label:",
        "mask",
        "prediction",
    ]
    first = bytes.fromhex(REBEN.classes.colors[expected[0, 0, 0]][1:])
    assert tuple(mask.images[0].get_array()[0, 0]) == tuple(first)
    assert not prediction.images[0].get_array().any()


def test_a_dataset_without_a_map_has_no_mask(tmp_path):
    build(make_plan(*open_source("synthetic:12"), open_store(tmp_path), modalities=("s2",)))

    with pytest.raises(ValueError, match="has no map"):
        ImageDataset(rc.open(tmp_path).search(), bands="RGB", mask=True)


def test_transforms_get_whole_samples(selection):
    dataset = ImageDataset(
        selection, bands="RGB", transforms=lambda sample: {**sample, "mean": sample["image"].mean()}
    )

    assert dataset[3]["mean"] == dataset[3]["image"].mean()


@pytest.mark.parametrize("bands", ["ALL", ("VV",)])
def test_a_sample_is_drawn_with_the_names_of_its_labels(selection, bands):
    dataset = ImageDataset(selection, bands=bands)
    sample = dataset[0]
    names = ", ".join(selection[:1].column("reben:labels")[0].as_py())
    figure = dataset.plot({**sample, "prediction": torch.eye(19, dtype=torch.int64)[1]}, suptitle="a patch")

    (axes,) = figure.axes
    assert sorted(axes.get_title().split("\n")[0].removeprefix("label: ").split(", ")) == sorted(
        names.split(", ")
    )
    assert axes.get_title().endswith("prediction: Arable land")
    (shown,) = axes.images
    assert np.ptp(shown.get_array()) > 0.5
    assert shown.get_array().shape == ((120, 120, 3) if bands == "ALL" else (120, 120))
    assert dataset.plot(sample, show_titles=False).axes[0].get_title() == ""
    probabilities = torch.linspace(0, 1, 19)  # of which nine are above a half
    title = dataset.plot({**sample, "prediction": probabilities}).axes[0].get_title()
    assert title.endswith("prediction: " + ", ".join(dataset.classes[10:]))


def test_a_band_that_is_not_there_is_refused(selection):
    with pytest.raises(ValueError, match="'B10' is neither a band set"):
        ImageDataset(selection, bands=("B10",))
