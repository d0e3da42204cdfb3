"""verify: everything that can be wrong with a root is found, and named; nothing else is."""

import hashlib
import json
import re
import shutil

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reben_cloud as rc
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.checks.verify import verify
from reben_cloud.formats import tar, zarr
from reben_cloud.root import metadata
from reben_cloud.root.manifest import Manifest
from reben_cloud.root.patch import key_of
from reben_cloud.sources.lmdb import LmdbSource
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from tests import official

NUM_PATCHES = 30
MODALITIES = ("s2", "s1", "map")
ARRAYS = {array.name: array for modality in REBEN.modalities for array in zarr.pixel_arrays(modality)}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    url = tmp_path_factory.mktemp("good") / "root"
    build(make_plan(SyntheticSource(NUM_PATCHES), official.table_of(NUM_PATCHES), open_store(url)))
    return url


@pytest.fixture
def root(good, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(good, tmp_path / "root")


def problems(root, **options):
    return verify(rc.open(root), **options).problems


def some(root, pattern):
    return min(path for path in root.rglob(pattern) if path.is_file())


def relist(root):
    """Make the root's own list agree with what lies there: what a faulty builder would have published."""
    rows = pq.read_table(root / "objects.parquet").to_pylist()
    for row in rows:
        data = (root / row["path"]).read_bytes()
        row.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    schema = pq.read_schema(root / "objects.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema), root / "objects.parquet")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["objects_sha256"] = hashlib.sha256((root / "objects.parquet").read_bytes()).hexdigest()
    (root / "manifest.json").write_bytes(Manifest(manifest).to_bytes())


def flip(path, at=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


def test_a_good_root_has_no_problems_at_any_level(good):
    levels = [verify(rc.open(good), quick=True), verify(rc.open(good)), verify(rc.open(good), deep=True)]

    assert [report.level for report in levels] == ["quick", "full", "deep"]
    assert [report.problems for report in levels] == [(), (), ()]
    assert levels[0].num_patches == NUM_PATCHES
    assert json.loads(levels[2].to_json())["ok"] is True
    assert levels[2].to_text().endswith("checksums and every pixel: all right")


def test_quick_and_deep_exclude_each_other(good):
    with pytest.raises(ValueError, match="quick and deep exclude each other"):
        verify(rc.open(good), quick=True, deep=True)


def test_presence_and_size_need_one_listing(root):
    lost, short = sorted(root.rglob("*.tar"))[:2]
    lost.unlink()
    short.write_bytes(short.read_bytes()[:-512])
    (root / "zarr" / "notes.txt").write_text("mine")

    found = problems(root, quick=True)

    size = short.stat().st_size
    assert found == (
        f"{lost.relative_to(root)}: missing",
        f"{short.relative_to(root)}: {size:,} bytes, must be {size + 512:,}",
        "zarr/notes.txt: not part of the dataset, it is in no list",
    )


@pytest.mark.parametrize("pattern", ["train-s2-000000.tar", "s1/c/0/0/0/*", "zarr.json", "patches.parquet"])
def test_a_flipped_bit_is_found_by_checksums_alone(root, pattern):
    path = some(root, pattern)
    flip(path)

    assert problems(root, quick=True) == ()
    assert problems(root) == (f"{path.relative_to(root)}: damaged, its sha256 differs",)


def test_a_changed_list_is_noticed(root):
    table = pq.read_table(root / "objects.parquet")
    pq.write_table(table.slice(1), root / "objects.parquet")

    found = problems(root, quick=True)

    assert found[0] == "objects.parquet: not the list that the manifest names, its sha256 differs"
    assert "not part of the dataset" in found[1]
    (root / "objects.parquet").unlink()
    assert problems(root, quick=True)[0].startswith("objects.parquet: missing")


# What follows is damage that the root's own list agrees with: only `deep` can see it.


def zarr_shard(root, array):
    path = sorted(root.glob(f"zarr/*.zarr/{array}/c/0"))[0]
    path = next(p for p in path.rglob("*") if p.is_file())
    return path, zarr.decode_shard(ARRAYS[array], path.read_bytes())


def test_swapped_rows_of_a_zarr_array_are_found(root):
    path, patches = zarr_shard(root, "s2_20m")
    patches[[1, 2]] = patches[[2, 1]]
    path.write_bytes(zarr.encode_shard(ARRAYS["s2_20m"], patches))
    relist(root)

    assert problems(root) == ()
    found = problems(root, deep=True)
    product = path.relative_to(root / "zarr").parts[0]
    assert [line.split(":")[0] for line in found] == [f"zarr/{product} row 1", f"zarr/{product} row 2"]
    assert all("s2 of S2" in line and "other pixels than patches.parquet says" in line for line in found)


def test_patches_swapped_in_a_whole_modality_are_named(root):
    path, patches = zarr_shard(root, "s1")
    patches[[0, 1]] = patches[[1, 0]]
    path.write_bytes(zarr.encode_shard(ARRAYS["s1"], patches))
    relist(root)

    found = problems(root, deep=True)

    ids = [re.findall(r"S2[AB]_MSIL2A\w{43}", line) for line in found]
    assert [line.split(": ", 1)[1].split(" of ")[0] for line in found] == ["s1", "s1"]
    assert ids[0][-2:] == ids[1][-2:][::-1]  # each holds the pixels of the other


def test_one_changed_pixel_of_a_map_is_found(root):
    path, patches = zarr_shard(root, "reference_map")
    patches[0, 60, 60] += 1
    path.write_bytes(zarr.encode_shard(ARRAYS["reference_map"], patches))
    relist(root)

    (found,) = problems(root, deep=True)

    assert " row 0: map of S2" in found


def test_a_missing_zarr_shard_is_not_taken_for_zeros(root):
    path, _ = zarr_shard(root, "s2_60m")
    path.unlink()

    found = problems(root, deep=True)

    assert found == (f"{path.relative_to(root)}: missing",)


def test_a_damaged_zarr_chunk_is_named(root):
    path, _ = zarr_shard(root, "s2_10m")
    flip(path, 100)
    relist(root)

    (found,) = problems(root, deep=True)

    damage = "patch 0: the crc32c checksum does not match, the bytes are damaged; copy the object again"
    assert found.startswith(f"{path.relative_to(root)}: {damage}")


def rewrite_shard(root, change):
    path = some(root, "train-s1-000000.tar")
    samples = change(tar.iter_samples(REBEN.modality("s1"), path.read_bytes()))
    path.write_bytes(tar.encode_shard(REBEN.modality("s1"), samples, num_samples=len(samples)))
    relist(root)
    return path.relative_to(root)


def test_swapped_samples_of_a_shard_are_found(root):
    path = rewrite_shard(root, lambda s: [s[1], s[0], *s[2:]])

    found = problems(root, deep=True)

    assert {line.split(":")[0] for line in found} == {f"{path} row 0", f"{path} row 1"}
    assert sum(", must be S2" in line for line in found) == 2
    assert sum("holds the pixels of" in line for line in found) == 2


def test_payloads_swapped_under_their_names_are_found(root):
    path = rewrite_shard(root, lambda s: [(s[0][0], s[1][1], s[0][2]), (s[1][0], s[0][1], s[1][2]), *s[2:]])

    found = problems(root, deep=True)

    assert len(found) == 2
    assert all(line.startswith(f"{path} row ") and "holds the pixels of" in line for line in found)


def test_changed_sample_metadata_is_found(root):
    path = rewrite_shard(root, lambda s: [(s[0][0], s[0][1], {**s[0][2], "split": "test"}), *s[1:]])

    (found,) = problems(root, deep=True)

    assert re.match(rf"{path} row 0: the metadata of S2\w+ is not what patches.parquet says", found)


def test_a_lost_sample_is_found(root):
    path = rewrite_shard(root, lambda s: s[:-1])

    assert re.search(rf"{path}: \d+ samples, must be \d+", problems(root, deep=True)[0])


# -- against -------------------------------------------------------------------------------------------


def test_a_source_with_other_pixels_is_told(good, tmp_path):
    table = official.table_of(NUM_PATCHES)
    official.write_folders(tmp_path, table)
    path = some(tmp_path, "*_B8A.tif")
    flip(path, -100)
    from reben_cloud.sources.recognise import open_source

    (found,) = problems(good, against=open_source(tmp_path)[0])

    assert found.startswith("source: s2 of " + path.name.removesuffix("_B8A.tif"))
    path.unlink()
    (found,) = problems(good, against=open_source(tmp_path)[0])
    assert re.search(r"the source does not give it: .* has no file for B8A", found)


def test_an_exported_lmdb_is_compared(good, tmp_path):
    source, infos = SyntheticSource(NUM_PATCHES), list(metadata.patch_infos(official.table_of(NUM_PATCHES)))
    env = lmdb.open(str(tmp_path / "lmdb"), map_size=1 << 28)
    with env.begin(write=True) as txn:
        for info in infos:
            for modality, payload in source.read(info, MODALITIES).payloads.items():
                txn.put(key_of(REBEN.modality(modality), info).encode(), payload)
        wrong = source.read(infos[3], ["map"]).payloads["map"]
        txn.put(key_of(REBEN.modality("map"), infos[4]).encode(), wrong)
        txn.delete(key_of(REBEN.modality("s1"), infos[5]).encode())
    env.close()

    found = problems(good, against=LmdbSource(str(tmp_path / "lmdb")))

    assert len(found) == 2
    assert f"source: map of {infos[4].patch_id} " in found[0]
    assert f"{infos[5].patch_id}: the source does not give it" in found[1]


def test_archives_are_compared(good, tmp_path):
    from reben_cloud.sources.recognise import open_source

    table = official.table_of(NUM_PATCHES)
    official.write_archives(tmp_path, table)
    assert problems(good, against=open_source(tmp_path)[0]) == ()

    lacking = official.table_of(NUM_PATCHES).slice(1)
    official.write_archives(tmp_path, lacking, ["map"])
    (found,) = problems(good, against=open_source(tmp_path)[0])
    assert found == f"{table['patch_id'][0]}: not in the source (1 such map patches)"


@pytest.mark.s3
def test_a_root_on_s3_is_verified(good, s3_bucket):
    store = open_store(f"{s3_bucket.url}/root", s3_bucket.storage_options)
    for path in good.rglob("*"):
        if path.is_file():
            store.put(str(path.relative_to(good)), path.read_bytes())
    dataset = rc.open(store.url, s3_bucket.storage_options)
    assert verify(dataset, deep=True).problems == ()

    lost = next(path for path, _ in store.list("shards"))
    store.delete(lost)
    assert verify(dataset, quick=True).problems == (f"{lost}: missing",)
    assert np.size(verify(dataset, deep=True).problems) == 1
