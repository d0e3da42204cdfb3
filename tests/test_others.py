"""Libraries of others read shards and loaders as docs/howto/others.md says: its blocks are run."""

import re
from importlib.util import find_spec

import numpy as np
import pytest

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import RawPatches
from tests.conftest import REPOSITORY
from tests.webserver import serve

PAGE = (REPOSITORY / "docs" / "howto" / "others.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
PACKAGES = {
    "webdataset": "webdataset",
    "Hugging Face datasets": "datasets",
    "NVIDIA DALI": "nvidia.dali",
    "JAX": "jax",
    "Grain": "grain",
    "terratorch": "terratorch",
    "Ray Data": "ray",
}
RGB = ("B04", "B03", "B02")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others") / "demo" / "root"
    source, official = open_source("synthetic:60")
    build(make_plan(source, official, open_store(folder)))
    return folder


@pytest.fixture
def run(root, monkeypatch, tmp_path):
    """Runs the blocks of a section in a folder that has the demo."""
    monkeypatch.chdir(root.parent.parent)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(title, **changes):
        require(title)
        found = {"__name__": "others"}
        for text in re.findall(r"^```py(?:thon)?\n(.*?)^```$", SECTIONS[title], re.M | re.S):
            for old, new in changes.items():
                assert old in text
                text = text.replace(old, new)
            exec(compile(text, title, "exec"), found)
        return found

    return run


def require(title):
    """Skip, loudly, where the package is not there; these are large, so CI does without."""
    package = PACKAGES[title]
    try:
        is_there = find_spec(package) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        pytest.skip(f"{package} is not installed, so what docs/howto/others.md says of it is not tested")


@pytest.fixture
def truth(root):
    """Patch id -> blue, green and red, by our own reader."""
    found = rc.open(root).search()
    return dict(
        zip(found.patch_ids, RawPatches(found, bands=RGB[::-1]).take(slice(None))["s2_10m"], strict=True)
    )


def test_each_section_has_a_package():
    assert SECTIONS.keys() == PACKAGES.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other people's own
@pytest.mark.parametrize("title", ["webdataset", "Hugging Face datasets", "Ray Data"])
def test_records_are_read_as_they_are(run, truth, root, title):
    if title == "Ray Data":
        require(title)
        import ray

        ray.init(num_cpus=1, include_dashboard=False, object_store_memory=10**8, log_to_driver=False)
    try:
        found = run(title)
    finally:
        if title == "Ray Data":
            ray.shutdown()

    sample = found.get("sample") or found["row"]
    for name, expected in zip(RGB[::-1], truth[sample["__key__"]], strict=True):
        np.testing.assert_array_equal(found["bands"][name], expected)
    if "labels" in found:
        (labels,) = rc.open(root).search(ids=sample["__key__"]).column("reben:labels").to_pylist()
        assert sorted(found["labels"]) == sorted(labels)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other people's own
def test_datasets_streams_every_record_over_http(root, truth, tmp_path, monkeypatch):
    require("Hugging Face datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    import datasets
    from safetensors.numpy import load

    with serve(root) as url:
        shards = [f"{url}/{path.relative_to(root)}" for path in sorted(root.glob("shards/*/s2/*.tar"))]
        stream = datasets.load_dataset(
            "webdataset", data_files={"all": shards}, streaming=True, cache_dir=str(tmp_path)
        )["all"]
        found = {row["__key__"]: load(row["s2.safetensors"])["B03"] for row in stream}

    assert found.keys() == truth.keys()
    for patch_id, pixels in found.items():
        np.testing.assert_array_equal(pixels, truth[patch_id][1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other people's own
def test_datasets_streams_every_record_from_s3_by_links(root, truth, tmp_path, s3_bucket):
    require("Hugging Face datasets")
    import datasets
    from safetensors.numpy import load

    store = open_store(f"{s3_bucket.url}/root", s3_bucket.storage_options)
    for path in sorted(root.glob("shards/*/s2/*.tar")):
        store.put(path.relative_to(root).as_posix(), path.read_bytes())

    client = s3_bucket.server.client()
    links = [
        client.generate_presigned_url("get_object", Params={"Bucket": s3_bucket.name, "Key": f"root/{path}"})
        for path, _ in store.list("shards")
    ]
    stream = datasets.load_dataset(
        "webdataset", data_files={"all": links}, streaming=True, cache_dir=str(tmp_path)
    )["all"]

    found = {row["__key__"]: load(row["s2.safetensors"])["B03"] for row in stream}
    assert found.keys() == truth.keys()
    for patch_id, pixels in found.items():
        np.testing.assert_array_equal(pixels, truth[patch_id][1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other people's own
def test_dali_cuts_bands_out_of_records(run, truth):
    import json

    found = run("NVIDIA DALI")

    for row, image in enumerate(found["images"].as_array()):
        patch_id = json.loads(bytes(found["texts"].at(row)))["patch_id"]
        np.testing.assert_array_equal(image, truth[patch_id])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other people's own
def test_jax_holds_batches_that_nobody_writes_again(run, truth):
    found = run("JAX")

    seen = []
    for index, images in found["held"]:
        for at, image in zip(index, np.asarray(images), strict=True):
            seen.append(found["train"].patch_ids[at])
            np.testing.assert_array_equal(image, truth[seen[-1]][::-1])
    assert sorted(seen) == sorted(found["train"].patch_ids)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other people's own
def test_grain_shuffles_and_reads_batches(run, truth):
    found = run("Grain")

    ids = found["patches"]._stored.selection.patch_ids
    seen = []
    for batch in found["batches"]:
        for at, image in zip(batch["index"], batch["s2_10m"], strict=True):
            seen.append(ids[at])
            np.testing.assert_array_equal(image, truth[ids[at]][::-1])
    assert sorted(seen) == sorted(ids)
    assert seen != ids
    one = found["one_by_one"][0]
    np.testing.assert_array_equal(one["s2_10m"], truth[ids[one["index"]]][::-1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other people's own
def test_terratorch_trains_on_image_datasets(run, tmp_path):
    found = run("terratorch", **{'"runs"': repr(str(tmp_path))})

    metrics = found["trainer"].callback_metrics
    assert 0 < float(metrics["train/loss"]) < 5
    assert 0 <= float(metrics["val/Class_F1_Arable land"]) <= 1
    sample = found["data"].val_dataset[0]
    found["task"].eval()
    logits = found["task"](sample["image"][None]).output[0].detach()
    title = found["data"].val_dataset.plot({**sample, "prediction": logits.sigmoid()}).axes[0].get_title()
    named = [name for name, logit in zip(found["classes"], logits.tolist(), strict=True) if logit > 0]
    assert title.endswith("prediction: " + ", ".join(named))
