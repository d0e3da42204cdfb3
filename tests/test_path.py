"""The whole path on real data: 24 real S1+S2 pairs from their LMDB to a root and back, compared.

The same steps run on a folder and on a real S3 server. Readers that are not ours (lmdb with
safetensors, webdataset, plain xarray, boto3) look at both ends.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile

import lmdb
import numpy as np
import pytest
import webdataset as wds
import xarray as xr
from safetensors.numpy import load

import reben_cloud as rc
from reben_cloud.bigearthnet.bands import ARRAYS
from reben_cloud.build import build, make_plan
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store


@pytest.fixture(scope="module")
def mock(shared):
    return shared / "data" / "configilm_benv2_mock"


@pytest.fixture(scope="module")
def truth(mock, tmp_path_factory):
    """Name -> tensors, read with lmdb and safetensors alone (from a copy: lmdb opens a folder once per process)."""
    copy = tmp_path_factory.mktemp("truth") / "lmdb"
    shutil.copytree(mock / "BigEarthNet-V2-LMDB", copy)
    env = lmdb.open(str(copy), readonly=True, lock=False)
    with env.begin() as txn:
        found = {key.decode(): load(bytes(value)) for key, value in txn.cursor()}
    env.close()
    return found


@pytest.fixture(scope="module")
def official(shared, truth):
    import pyarrow.parquet as pq

    folder = shared / "data" / "bigearthnet_pipeline"
    rows = {}
    for name in ("metadata", "metadata_for_patches_with_snow_cloud_or_shadow"):
        wanted = [("patch_id", "in", list(truth))]
        for row in pq.read_table(folder / f"{name}.parquet", filters=wanted).to_pylist():
            rows[row["patch_id"]] = row
    return rows


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def place(request, tmp_path):
    """Where the root goes: (url, storage options)."""
    if request.param == "s3":
        bucket = request.getfixturevalue("s3_bucket")
        return f"{bucket.url}/benv2", bucket.storage_options
    return str(tmp_path / "root"), {}


@pytest.fixture
def root(place, mock):
    url, options = place
    source, metadata = open_source(mock)
    build(make_plan(source, metadata, open_store(url, options)))
    return rc.open(url, options)


@pytest.mark.slow
def test_every_form_holds_the_real_values(root, truth, official):
    selection = root.search()

    assert len(root) == len(selection) == 24
    assert root.manifest["modalities"] == ["s2", "s1"]
    seen = set()
    for product in root.products:
        stack = root.open_zarr(product)
        for row, patch_id in enumerate(stack.patch_id.values.tolist()):
            info = official[patch_id]
            seen.add(patch_id)
            for array in ("s2_10m", "s2_20m", "s2_60m"):
                want = np.stack([truth[patch_id][band] for band in ARRAYS[array]])
                np.testing.assert_array_equal(stack[array].values[row], want)
            want = np.stack([truth[info["s1_name"]][band] for band in ("VV", "VH")])
            np.testing.assert_array_equal(stack.s1.values[row], want)
            labels = stack.label.values[stack.labels.values[row].astype(bool)]
            assert labels.tolist() == sorted(info["labels"])
    assert sorted(selection.patch_ids) == sorted(seen)


def test_shards_read_with_webdataset_and_tarfile_alone(root, truth, official, tmp_path):
    found = {}
    for path, _ in root.store.list("shards"):
        data = bytes(root.store.get(path))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert len(tar.getmembers()) % 2 == 0
        local = tmp_path / path.replace("/", "_")
        local.write_bytes(data)
        for sample in wds.WebDataset(str(local), shardshuffle=False):
            modality = "s2" if "s2.safetensors" in sample else "s1"
            metadata = json.loads(sample["json"])
            row = official[sample["__key__"]]
            assert {k: metadata[k] for k in row} == row
            found[sample["__key__"], modality] = load(sample[f"{modality}.safetensors"])
    assert len(found) == 48
    for (patch_id, modality), tensors in found.items():
        want = truth[patch_id if modality == "s2" else official[patch_id]["s1_name"]]
        assert tensors.keys() == want.keys()
        for band in want:
            np.testing.assert_array_equal(tensors[band], want[band])


@pytest.mark.s3
def test_webdataset_and_xarray_read_from_s3_with_no_code_of_ours(s3_bucket, mock, truth, official):
    source, metadata = open_source(mock)
    store = open_store(f"{s3_bucket.url}/benv2", s3_bucket.storage_options)
    manifest = build(make_plan(source, metadata, store))
    client = s3_bucket.server.client()
    listed = client.list_objects_v2(Bucket=s3_bucket.name, Prefix="benv2/shards/")["Contents"]
    urls = [
        client.generate_presigned_url("get_object", Params={"Bucket": s3_bucket.name, "Key": o["Key"]})
        for o in listed
        if "-s2-" in o["Key"]
    ]

    samples = list(wds.WebDataset([f"pipe:curl -sf '{url}'" for url in urls], shardshuffle=False))
    opened = [
        xr.open_zarr(
            f"s3://{s3_bucket.name}/benv2/zarr/{product}.zarr",
            storage_options=s3_bucket.storage_options,
            zarr_format=3,
        ).load()
        for product in manifest["products"]
    ]

    assert len(samples) == 24
    for sample in samples:
        np.testing.assert_array_equal(load(sample["s2.safetensors"])["B8A"], truth[sample["__key__"]]["B8A"])
    for stack in opened:
        for row, patch_id in enumerate(stack.patch_id.values.tolist()):
            np.testing.assert_array_equal(
                stack.s1.sel(polarization="VH").values[row], truth[official[patch_id]["s1_name"]]["VH"]
            )


def test_stream_delivers_the_real_values_once(root, truth, official):
    pytest.importorskip("torch")
    from reben_cloud.torch import StreamLoader

    selection = root.search()
    ids = selection.patch_ids
    seen = []
    for batch in StreamLoader(selection, modalities=("s2", "s1"), batch_size=5, seed=3):
        for row, position in enumerate(batch["index"].tolist()):
            if position < 0:
                continue
            patch_id = ids[position]
            seen.append(patch_id)
            for array in ("s2_10m", "s2_20m", "s2_60m"):
                want = np.stack([truth[patch_id][band] for band in ARRAYS[array]])
                np.testing.assert_array_equal(batch[array][row].numpy(), want)
            want = np.stack([truth[official[patch_id]["s1_name"]][band] for band in ("VV", "VH")])
            np.testing.assert_array_equal(batch["s1"][row].numpy(), want)
    assert sorted(seen) == sorted(ids)


def test_export_reads_back_as_the_source(root, truth, tmp_path):
    root.search().export_lmdb(tmp_path / "export")

    env = lmdb.open(str(tmp_path / "export"), readonly=True, lock=False)
    with env.begin() as txn:
        found = {key.decode(): load(bytes(value)) for key, value in txn.cursor()}
    env.close()
    assert found.keys() == truth.keys()
    for name, tensors in truth.items():
        for band in tensors:
            np.testing.assert_array_equal(found[name][band], tensors[band])


def test_building_twice_gives_the_same_bytes(mock, tmp_path):
    source, metadata = open_source(mock)
    for name in ("a", "b"):
        build(make_plan(source, metadata, open_store(tmp_path / name)))

    files = {
        name: {
            str(p.relative_to(tmp_path / name)): p.read_bytes()
            for p in sorted((tmp_path / name).rglob("*"))
            if p.is_file()
        }
        for name in ("a", "b")
    }
    assert files["a"].keys() == files["b"].keys()
    assert [path for path in files["a"] if files["a"][path] != files["b"][path]] == []
