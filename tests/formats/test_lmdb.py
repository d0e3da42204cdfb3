"""LMDB folders: rico-hdl's bytes from real TIFFs, layouts read by LMDB itself, LMDB's files read without it."""

import hashlib
import multiprocessing
import os
import random

import hypothesis
import lmdb as py_lmdb
import numpy as np
import pytest
import rasterio
from hypothesis import strategies as st

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import NotFoundError, SourceError, StorageError
from reben_cloud.formats import lmdb
from reben_cloud.formats.lmdb_file import LmdbFile
from reben_cloud.formats.lmdb_pages import PAGE_BYTES, plan_pages

RICO_HDL_SHA256 = "4e1ec10580ac2bde74ae4621c40ce20429cee6507ad10c4c6deb81abb06d5c06"
RICO_HDL_WITH_MAP_SHA256 = "50d011ca9dff9c8a735e48d8c21b3de111e30404f546e8bfd151f0235182af19"
RICO_HDL_MAP_SIZE = 100 * 2**40


def payload_of(folder, modality):
    """The payload of the TIFFs in a patch folder, read with rasterio."""
    bands = {}
    for path in sorted(folder.glob("*.tif")):
        with rasterio.open(path) as image:
            band = path.stem.rsplit("_", 1)[-1]
            bands["Data" if modality == "map" else band] = image.read(1)
    return REBEN.modality(modality).encode(bands)


@pytest.fixture(scope="module")
def passes(shared):
    """The records of rico-hdl's own test, from its TIFFs: S1, S2, map."""
    tiffs = shared / "data" / "rico_hdl_bigearthnet" / "tiffs" / "BigEarthNet"
    found = []
    for modality, name in (("s1", "BigEarthNet-S1"), ("s2", "BigEarthNet-S2"), ("map", "Reference_Maps")):
        records = []
        for folder in sorted({p.parent for p in (tiffs / name).rglob("*.tif")}):
            suffix = "_reference_map" if modality == "map" else ""
            records.append((f"{folder.name}{suffix}".encode(), payload_of(folder, modality)))
        found.append(records)
    return found


@pytest.mark.parametrize(
    ("count", "sha256"),
    [pytest.param(2, RICO_HDL_SHA256, id="s1-s2"), pytest.param(3, RICO_HDL_WITH_MAP_SHA256, id="s1-s2-map")],
)
def test_the_file_is_rico_hdls_to_the_byte(passes, tmp_path, count, sha256):
    lmdb.put_as_rico_hdl(tmp_path / "out", passes[:count], map_size=RICO_HDL_MAP_SIZE)

    assert hashlib.sha256((tmp_path / "out" / "data.mdb").read_bytes()).hexdigest() == sha256


def test_only_the_map_size_differs_from_the_reference_file(passes, tmp_path, shared):
    lmdb.put_as_rico_hdl(tmp_path / "out", passes[:2])

    ours = np.frombuffer((tmp_path / "out" / "data.mdb").read_bytes(), np.uint8)
    reference = shared / "data" / "rico_hdl_bigearthnet" / "BigEarthNet_LMDB" / "data.mdb"
    theirs = np.frombuffer(reference.read_bytes(), np.uint8)
    different = set(np.flatnonzero(ours != theirs).tolist())
    assert different <= {*range(32, 40), *range(4128, 4136)}


def write_layout(folder, keys, values):
    folder.mkdir()
    layout = plan_pages(keys, np.array([len(v) for v in values], np.int64))
    with open(folder / "data.mdb", "wb") as file:
        file.truncate(layout.nbytes)
        file.write(layout.meta(layout.nbytes))
        file.seek(layout.tree_page * PAGE_BYTES)
        file.writelines(layout.tree())
        # In any order: that is what a layout is for.
        for number in random.Random(0).sample(range(len(keys)), len(keys)):
            file.seek(layout.value_offset(number) - 16)
            file.write(layout.value_header(number) + values[number])
    return layout


@pytest.mark.parametrize("count", [1, 2, 46, 47, 48, 49, 50, 51, 99, 2_600, 6_000])
def test_lmdb_reads_changes_and_copies_a_laid_out_file(tmp_path, count):
    draw = random.Random(count)
    keys = sorted(f"S2A_{n:06d}_".encode() + b"x" * draw.randint(1, 53) for n in range(count))
    values = [
        n.to_bytes(4, "little") * draw.choice([1, 21, 513, 700, 1020, 1021, 2050]) for n in range(count)
    ]

    layout = write_layout(tmp_path / "db", keys, values)

    assert (tmp_path / "db" / "data.mdb").stat().st_size == layout.nbytes
    with py_lmdb.open(str(tmp_path / "db"), map_size=layout.nbytes + 2**26) as env:
        assert env.stat()["entries"] == count
        assert env.stat()["overflow_pages"] == layout.tree_page - 2
        with env.begin() as txn:
            assert list(txn.cursor()) == list(zip(keys, values, strict=True))
            assert [txn.get(key) for key in keys] == values
        (tmp_path / "copy").mkdir()
        env.copy(str(tmp_path / "copy"), compact=True)
        gone = draw.sample(keys, min(count, 200))
        with env.begin(write=True) as txn:
            for key in gone:
                assert txn.delete(key)
                txn.put(key + b"_new", b"y" * 5_000)
        with env.begin() as txn:
            kept = dict(zip(keys, values, strict=True)) | {k + b"_new": b"y" * 5_000 for k in gone}
            assert dict(txn.cursor()) == {k: v for k, v in kept.items() if k not in gone}
    with py_lmdb.open(str(tmp_path / "copy"), readonly=True) as env, env.begin() as txn:
        assert dict(txn.cursor()) == dict(zip(keys, values, strict=True))


@pytest.mark.parametrize(
    ("keys", "sizes", "match"),
    [
        pytest.param([], [], "without records", id="none"),
        pytest.param([b"b", b"a"], [4096, 4096], "must be distinct and rise", id="order"),
        pytest.param([b"a", b"a"], [4096, 4096], "must be distinct and rise", id="twice"),
        pytest.param([b""], [100], "1 to 511 bytes, these have 0", id="empty key"),
        pytest.param([b"a" * 512], [100], "1 to 511 bytes, these have 512 to 512", id="long key"),
    ],
)
def test_a_layout_refuses(keys, sizes, match):
    with pytest.raises(ValueError, match=match):
        plan_pages(keys, np.array(sizes, np.int64))


@pytest.fixture
def folder(tmp_path, passes):
    lmdb.put_as_rico_hdl(tmp_path / "db", passes)
    return tmp_path / "db"


def test_records_are_read_by_key_and_keys_come_in_order(folder, passes):
    link = folder.parent / "link"
    link.symlink_to(folder)
    s2_key, s2_value = passes[1][0]

    assert lmdb.open_lmdb(folder) is lmdb.open_lmdb(link)
    assert lmdb.read_many(folder, [s2_key.decode()]) == [s2_value]
    assert list(lmdb.keys(folder)) == sorted(k.decode() for records in passes for k, _ in records)
    assert lmdb.num_records(folder) == sum(map(len, passes))


def test_a_forked_child_and_a_spawned_one_read_too(folder, passes):
    key, value = passes[0][0]
    assert lmdb.read_many(folder, [key.decode()]) == [value]
    reader, writer = os.pipe()

    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        status = 1
        try:
            os.write(writer, hashlib.sha256(lmdb.read_many(folder, [key.decode()])[0]).digest())
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.apply(lmdb.read_many, (folder, [key.decode()]))

    assert os.read(reader, 32) == hashlib.sha256(value).digest()
    assert spawned == [value]


def test_a_replaced_file_is_opened_again(folder, passes, tmp_path):
    key, value = passes[0][0]
    old = lmdb.open_lmdb(folder)
    other = bytes(value[:-4]) + b"\0\0\0\0"
    lmdb.put_as_rico_hdl(tmp_path / "new", [[(key, other)]])

    os.rename(folder, tmp_path / "old")
    os.rename(tmp_path / "new", folder)

    assert lmdb.read_many(folder, [key.decode()]) == [other]
    assert old.get(key) == value


def test_errors_say_what_is_wrong(folder, tmp_path):
    with pytest.raises(NotFoundError, match=r"nowhere is not an LMDB folder: it has no data\.mdb"):
        lmdb.open_lmdb(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="no record 'nobody'"):
        lmdb.read_many(folder, ["nobody"])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "data.mdb").write_bytes(b"x" * 8192)
    with pytest.raises(SourceError, match="not a readable LMDB database"):
        lmdb.open_lmdb(tmp_path / "bad")
    (tmp_path / "bad" / "data.mdb").write_bytes(b"x")
    with pytest.raises(SourceError, match="not a readable LMDB database, it has 1 bytes"):
        lmdb.open_lmdb(tmp_path / "bad")


def test_a_file_that_another_library_has_open_is_read_all_the_same(folder, passes):
    key, value = passes[0][0]

    with py_lmdb.open(str(folder), readonly=True, lock=False):
        assert lmdb.read_many(folder, [key.decode()]) == [value]


def test_a_file_cut_short_while_it_is_read_is_an_error(folder, passes):
    opened = lmdb.open_lmdb(folder)
    key, value = passes[0][0]
    assert opened.get(key) == value

    os.truncate(folder / "data.mdb", 3 * PAGE_BYTES)

    with pytest.raises(StorageError, match=r"data\.mdb ends at byte 12,288, before .* cut short"):
        [opened.get(key) for records in passes for key, _ in records]
    with pytest.raises(SourceError, match="is truncated"):
        opened.check_unchanged()
    with pytest.raises(SourceError, match="is truncated"):
        lmdb.open_lmdb(folder)


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=12, suppress_health_check=list(hypothesis.HealthCheck))
def test_what_lmdb_wrote_in_any_way_is_read_as_lmdb_reads_it(tmp_path_factory, data):
    draw = random.Random(data.draw(st.integers(0, 10**6)))
    folder = tmp_path_factory.mktemp("db")
    with py_lmdb.open(str(folder), map_size=2**26) as env:
        for _ in range(draw.randint(1, 4)):
            with env.begin(write=True) as txn:
                for _ in range(draw.choice([0, 1, 30, 400])):
                    key = draw.randbytes(draw.randint(1, 60))
                    txn.put(key, draw.randbytes(draw.choice([0, 1, 100, 1500, 2000, 2100, 5000, 9000])))
                there = list(txn.cursor().iternext(values=False))
                for key in draw.sample(there, min(draw.choice([0, 0, 1]), len(there))):
                    txn.delete(key)
        with env.begin() as txn:
            expected = dict(txn.cursor())

    file = LmdbFile(folder / "data.mdb")

    assert list(file.iter_keys()) == sorted(expected)
    assert file.num_records == len(expected)
    assert {key: file.get(key) for key in expected} == expected
    others = [draw.randbytes(draw.randint(1, 60)) for _ in range(50)]
    assert [file.get(key) for key in others] == [expected.get(key) for key in others]


def test_a_damaged_tree_ends_no_process_and_no_loop(tmp_path):
    keys = [f"S2A_{n:06d}".encode() for n in range(300)]
    values = [n.to_bytes(4, "little") * 700 for n in range(300)]
    layout = write_layout(tmp_path / "db", keys, values)
    file = tmp_path / "db" / "data.mdb"
    whole = file.read_bytes()
    draw, first = random.Random(0), layout.tree_page * PAGE_BYTES
    outcomes = set()

    for _ in range(60):
        damaged = bytearray(whole)
        damaged[draw.randrange(first, len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        try:
            opened = LmdbFile(file)
            found = [opened.get(key) for key in keys]
        except (SourceError, StorageError) as error:
            outcomes.add(type(error))
        else:
            outcomes.add(found == values)

    assert SourceError in outcomes
