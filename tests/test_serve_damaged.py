"""The server over a dataset that is damaged, lost or out of reach: a sentence in JSON, and the story in the log."""

from __future__ import annotations

import shutil

import httpx
import numpy as np
import pytest

import reben_cloud as rc
from reben_cloud.errors import ChecksumError
from reben_cloud.schema import TensorSpec
from reben_cloud.serve import create_app, results
from reben_cloud.store.budget import Budget
from tests.conftest import PATIENT_S
from tests.roots import synthetic_root
from tests.serving import serving

HEIGHTS = TensorSpec(name="dem", shape=(60, 60), dtype="int16", units="m", fill=-9999, pixel_m=20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a root, an LMDB made of it, and a layer of heights."""
    folder = tmp_path_factory.mktemp("whole")
    synthetic_root(folder / "root", 12, num_products=1)
    ds = rc.open(folder / "root")
    ds.search().export_lmdb(folder / "lmdb")
    heights = ((one, np.full((60, 60), n, np.int16)) for n, one in enumerate(ds.selection.patch_ids))
    rc.write_layer(folder / "elevation", ds, name="elevation", tensors=HEIGHTS, patches=heights)
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it, to be damaged, in a folder whose name no answer may tell."""
    return shutil.copytree(whole, tmp_path / "a-secret-folder")


def flip(file):
    """Change every pixel of a file of payloads; what leads to them stays."""
    data = bytearray(file.read_bytes())
    for at in range(len(data) // 3, 2 * len(data) // 3, 509):
        data[at] ^= 0xFF
    file.write_bytes(data)


def paths_of(patch_id):
    return [
        f"/patches/{patch_id}/B04.tif",
        f"/explore/patches/{patch_id}/true-color.png",
        f"/explore/patches/{patch_id}/reference-map.png",
        f"/explore/patches/{patch_id}",
        f"/explore/patches/{patch_id}/layers/elevation/dem.png",
        f"/patches/{patch_id}/elevation-dem.tif",
    ]


def check_told(answer, status):
    """A refusal of which clients learn no more than they may."""
    assert answer.status_code == status, answer.text[:300]
    assert set(answer.json()) == {"code", "description"}
    assert "a-secret-folder" not in answer.text
    assert "fault of the server" not in answer.text


def answers(dataset, patch_ids):
    with serving(dataset) as url, httpx.Client(base_url=url, timeout=PATIENT_S) as client:
        return [client.get(path) for one in patch_ids for path in paths_of(one)]


@pytest.mark.parametrize("name", ["root", "lmdb"])
def test_damage_is_told_in_a_sentence_and_logged(copied, name, caplog):
    for file in [*copied.rglob("*.tar"), *copied.rglob("data.mdb")]:
        flip(file)
    dataset = rc.open(copied / name, layers=[copied / "elevation"])

    found = answers(dataset, dataset.selection.patch_ids)

    refused = [one for one in found if one.status_code != 200]
    assert {one.url.path.rpartition("/")[2] for one in refused} >= {"B04.tif", "true-color.png", "dem.png"}
    for one in refused:
        check_told(one, 500)
        assert "damaged" in one.json()["description"]
    logged = [one for one in caplog.records if one.name == "reben_cloud.serve.answers"]
    assert len(logged) == len(refused)
    assert all("a-secret-folder" in one.getMessage() for one in logged)


@pytest.mark.parametrize("name", ["root", "lmdb"])
def test_what_is_lost_is_not_found(copied, name, caplog):
    dataset = rc.open(copied / name, layers=[copied / "elevation"])
    create_app(dataset)  # reads the tables
    for file in [*copied.rglob("*.tar"), *copied.rglob("data.mdb")]:
        file.unlink()

    found = answers(dataset, dataset.selection.patch_ids[:1])

    for one in found:
        check_told(one, 404)
    assert len([one for one in caplog.records if one.name == "reben_cloud.serve.answers"]) == len(found)


@pytest.mark.slow
def test_a_store_out_of_reach_is_told_and_logged(whole, caplog):
    with serving(rc.open(whole / "root")) as first:
        dataset = rc.open(f"{first}/root")
        dataset.store.budget = Budget(attempts=1)  # the rest of them would take half a minute
        create_app(dataset)  # reads the tables

    with serving(dataset) as url:
        patch_id = dataset.selection.patch_ids[0]
        found = [httpx.get(f"{url}{path}", timeout=PATIENT_S) for path in paths_of(patch_id)[:2]]

    for one in found:
        check_told(one, 502)
        assert one.headers["retry-after"] == "10"
    assert len([one for one in caplog.records if one.name == "reben_cloud.serve.answers"]) == len(found)


def test_a_search_over_damage_is_not_the_clients_fault(whole, monkeypatch):
    def damaged(*args, **options):
        raise ChecksumError("patches.parquet is damaged")

    monkeypatch.setattr(results, "find_rows", damaged)
    with serving(rc.open(whole / "root")) as url:
        check_told(httpx.get(f"{url}/search", timeout=PATIENT_S), 500)
