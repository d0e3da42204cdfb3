"""Some bands alone: the right pixels in the order asked for, of every form, checked, and what is read."""

# ruff: noqa: F811 - fixtures are imported from the tests of the raw loader

import shutil

import numpy as np
import pytest

import reben_cloud as rc
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import ChecksumError
from reben_cloud.formats import tar
from reben_cloud.hosted.publish import index_hosted
from reben_cloud.schema import Modality, Schema, TensorSpec
from reben_cloud.schema.arrays import ArraySpec
from reben_cloud.stream import RawLoader, RawPatches
from tests.test_stream import epoch_of, indices, root, s3_root, selection, truth  # noqa: F401

RGB = ("B04", "B03", "B02")

WANTED = {
    "rgb": (RGB, None, {"s2_10m": [2, 1, 0]}),
    "torn": (("B8A", "B11", "B02", "VV"), None, {"s2_10m": [0], "s2_20m": [3, 4], "s1": [0]}),
    "an array": (("VH", "B02", "B03", "B04", "B08"), None, {"s1": [1], "s2_10m": [0, 1, 2, 3]}),
    "with the map": (RGB, ("s2", "map"), {"s2_10m": [2, 1, 0], "map": None}),
}  # fmt: skip
"""Bands, modalities -> array and its bands, by their numbers in the whole array; None for all of it."""


def expected_of(truth, arrays):
    return {
        name: truth[name] if numbers is None else truth[name][:, numbers] for name, numbers in arrays.items()
    }


def pixels_of(batch):
    return batch.keys() - {"labels", "index", "valid"}


@pytest.mark.parametrize("form", ["shards", "zarr", "lmdb", "reference"])
@pytest.mark.parametrize(("bands", "modalities", "arrays"), WANTED.values(), ids=WANTED)
def test_some_bands_have_their_own_pixels_in_the_order_asked_for(
    root, truth, bands, modalities, arrays, form, others, monkeypatch, tmp_path
):
    monkeypatch.setenv("REBEN_CACHE", str(tmp_path))
    found = rc.open(others.get(form, root)).search()
    where = np.array([rc.open(root).search().patch_ids.index(i) for i in found.patch_ids])
    options = {"bands": bands, "modalities": modalities, "form": "zarr" if form == "zarr" else "shards"}
    expected = expected_of(truth, arrays)
    loader = RawLoader(found, batch_size=16, **options)

    batches = epoch_of(loader)
    taken = RawPatches(found, **options).take([3, 140, 3])

    assert np.array_equal(np.sort(indices(batches)), np.arange(len(found)))
    for batch in [*batches, taken]:
        assert pixels_of(batch) == expected.keys()
        valid = batch["index"][batch["index"] >= 0]
        for name, values in expected.items():
            np.testing.assert_array_equal(batch[name][: len(valid)], values[where[valid]])
    assert {name: spec.shape for m in loader.schema.modalities for name, spec in m.samples.items()} == {
        name: values.shape[1:] for name, values in expected.items()
    }


@pytest.fixture(scope="module")
def others(root, tmp_path_factory):
    """The same patches in an LMDB, and in one that is referred to."""
    folder = tmp_path_factory.mktemp("others")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBEN_CACHE", str(folder / "cache"))
        rc.open(root).search().export_lmdb(folder / "lmdb")
        shutil.copytree(folder / "lmdb", folder / "hosted")
        for name in ("export.json", "patches.parquet"):
            (folder / "hosted" / name).unlink()
        index_hosted(folder / "hosted", folder / "reference")
    return {"lmdb": folder / "lmdb", "reference": folder / "reference"}


def test_order_and_state_are_those_of_all_bands(selection):
    whole, some = RawLoader(selection, batch_size=8), RawLoader(selection, batch_size=8, bands=RGB)

    found = [batch["index"].tolist() for batch in some]

    assert found == [batch["index"].tolist() for batch in whole]
    assert some.state_dict() == whole.state_dict()
    assert some.stats().bytes_delivered == len(selection) * 3 * 28_800


def test_a_mixture_and_what_is_expected_of_it_have_these_bands(root, truth):
    found = rc.open(root).search()
    loader = RawLoader(rc.concat([found[:40], found[40:]]), batch_size=16, bands=RGB)
    expected = loader.expected()

    batches = epoch_of(loader)

    assert np.array_equal(np.sort(indices(batches)), np.arange(len(found)))
    for batch in batches:
        np.testing.assert_array_equal(batch["s2_10m"], truth["s2_10m"][batch["index"]][:, [2, 1, 0]])
    assert expected.bytes_read == loader.stats().bytes_read
    assert expected.requests == loader.stats().requests


def test_a_band_that_is_not_wanted_is_compared_all_the_same(root, tmp_path):
    shutil.copytree(root, tmp_path / "root")
    path = next((tmp_path / "root").glob("shards/train/s2/*-000000.tar"))
    s2 = REBEN.modality("s2")
    data = bytearray(path.read_bytes())
    data[5 * tar.record_bytes(s2) + tar.PAYLOAD_OFFSET + s2.places["B12"].offset + 7] ^= 1
    path.write_bytes(data)
    found = rc.open(tmp_path / "root").search()

    with pytest.raises(ChecksumError, match="row 5"):
        list(RawLoader(found, batch_size=8, bands=["B02"]))
    with pytest.raises(ChecksumError, match="row 5"):
        RawPatches(found, bands=["B02"]).take(slice(None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"bands": "B04"}, r"such as \['B04'\], not a string", id="string"),
        pytest.param({"bands": []}, "at least one, got", id="none"),
        pytest.param({"bands": ["B04", "B04"]}, "different names", id="twice"),
        pytest.param({"bands": ["B10"]}, "unknown band 'B10'; there are B02, ", id="unknown"),
        pytest.param(
            {"bands": ["B04"], "modalities": ["s2", "s1"]}, "names none of s1's", id="no-band-of-it"
        ),
        pytest.param(
            {"bands": ["B04", "VV"], "modalities": ["s2"]}, "s1's, which is not among", id="not-there"
        ),
        pytest.param({"bands": ["B04"], "modalities": ["s3"]}, "unknown modality 's3'", id="modality"),
        pytest.param({"bands": ["B04"], "layout": "records"}, "whole payloads", id="records"),
    ],
)
def test_what_cannot_be_had_is_refused(selection, arguments, message):
    for loader in (RawLoader, RawPatches):
        with pytest.raises(ValueError, match=message):
            loader(selection, **arguments)


def test_a_model_input_takes_the_schema_of_the_loader(selection):
    torch = pytest.importorskip("torch")
    from reben_cloud.torch import ModelInput, PatchDataset, StreamLoader

    batch = next(iter(StreamLoader(selection, batch_size=8)))
    some = StreamLoader(selection, batch_size=8, bands=RGB)
    dataset = PatchDataset(selection, bands=RGB)
    samples = dataset.__getitems__(batch["index"].tolist())

    expected = ModelInput(list(RGB))(batch)

    assert torch.equal(ModelInput(list(RGB), schema=some.schema)(next(iter(some))), expected)
    assert torch.equal(ModelInput(list(RGB), schema=dataset.schema)(PatchDataset.collate(samples)), expected)


def test_of_any_schema_bands_are_cut_where_they_begin():
    """A payload whose order is neither that of the arrays nor that asked for."""
    tensors = [
        TensorSpec(name=n, shape=(4, 4), dtype=d, pixel_m=5.0)
        for n, d in (("c", "uint8"), ("a", "uint8"), ("b", "uint8"))
    ]
    own = TensorSpec(name="w", shape=(2, 2), dtype="float32", pixel_m=10.0)
    array = ArraySpec(
        name="abc", tensors=("c", "a", "b"), stacked=True, dims=("layer", "y", "x"), zarr_name="abc"
    )
    alone = ArraySpec(name="w", tensors=("w",), stacked=False, dims=("v", "u"), zarr_name="w")
    modality = Modality(name="m", tensors=(*tensors, own), arrays=(array, alone))
    schema = Schema(name="x", modalities=(modality,), classes=REBEN.classes, patch_m=20.0)

    narrowed = schema.narrowed(["b", "c"])

    assert narrowed.modality("m").arrays == (
        ArraySpec(name="abc", tensors=("b", "c"), stacked=True, dims=("layer", "y", "x"), zarr_name="abc"),
    )
    assert list(narrowed.bands) == ["b", "c"]
    assert Schema.from_json(narrowed.to_json()) == narrowed


@pytest.mark.parametrize("form", ["shards", "zarr"])
def test_what_is_read_from_s3_for_three_bands(s3_root, truth, form):
    found = rc.open(*s3_root).search()
    whole, some = RawPatches(found, form=form), RawPatches(found, form=form, bands=RGB)

    for patches in (whole, some):
        batch = patches.take(np.arange(0, 150, 10))
        np.testing.assert_array_equal(batch["index"], np.arange(0, 150, 10))
    np.testing.assert_array_equal(batch["s2_10m"], truth["s2_10m"][::10, [2, 1, 0]])

    assert some.counters.requests < whole.counters.requests
    assert some.counters.bytes_read < 0.6 * whole.counters.bytes_read
