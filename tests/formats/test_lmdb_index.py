"""The index of an LMDB that is read by ranges: LMDB's own answers, few bytes, and no damage that hangs or crashes."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import struct
import threading
import time

import hypothesis
import lmdb as py_lmdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from reben_cloud.errors import RebenError, SourceError, StorageError
from reben_cloud.files.whole import locked
from reben_cloud.formats import lmdb_index
from reben_cloud.formats.lmdb_index import RemoteLmdb, estimate, index, lookup
from reben_cloud.formats.lmdb_requests import GAP_SHARE, REQUEST_BYTES, plan_requests
from reben_cloud.store import Store
from tests.hub import Hub, serve

PAGE = 4096


class Ranges:
    """Reads a file's bytes, and says what was asked for."""

    def __init__(self, data, latency_s=0.0):
        self.data, self.latency_s, self.asked = data, latency_s, []
        self.lock, self.here, self.most = threading.Lock(), 0, 0

    def __call__(self, offset, length):
        with self.lock:
            self.asked.append((offset, length))
            self.here += 1
            self.most = max(self.most, self.here)
        time.sleep(self.latency_s)
        with self.lock:
            self.here -= 1
        assert offset >= 0
        assert 0 < length <= REQUEST_BYTES
        return self.data[offset : offset + length]

    @property
    def nbytes(self):
        return sum(length for _, length in self.asked)


def write(folder, records, *, batch=10**9, **options):
    """An LMDB that LMDB itself writes; its bytes."""
    with py_lmdb.open(str(folder), map_size=2**32, **options) as env:
        for start in range(0, len(records), batch):
            with env.begin(write=True) as txn:
                for key, value in records[start : start + batch]:
                    txn.put(key, value)
    return (folder / "data.mdb").read_bytes()


def records_of(folder):
    with py_lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        return list(txn.cursor())


def check(data, records):
    """Compare an index with what LMDB has, value by value."""
    found = index(Ranges(data), len(data))

    assert found.schema == lmdb_index.SCHEMA
    assert found.column("key").to_pylist() == [key for key, _ in records]
    for offset, length, (key, value) in zip(
        found.column("offset").to_pylist(), found.column("length").to_pylist(), records, strict=True
    ):
        assert data[offset : offset + length] == value, key
    return found


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """100,000 records, three branches deep, as many transactions of LMDB leave them; its bytes and keys."""
    folder = tmp_path_factory.mktemp("large")
    rng = random.Random(3)
    keys = [
        f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{n:06}_{'x' * 400}".encode() for n in range(100_000)
    ]
    data = write(folder, [(key, rng.randbytes(rng.choice((3, 40, 300)))) for key in keys], batch=20_000)
    return data, folder


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """20,000 records of mixed sizes, most of them on pages of their own; the folder."""
    folder = tmp_path_factory.mktemp("overflowing")
    rng = random.Random(4)
    sizes = [0, 1, 500, 2000, 2030, 2048, 2100, 4080, 4081, 5000]
    records = [(f"patch_{n:05}".encode(), rng.randbytes(rng.choice(sizes))) for n in range(20_000)]
    return write(folder, records, batch=512), folder


@pytest.mark.parametrize(
    "path", ["rico_hdl_bigearthnet/BigEarthNet_LMDB", "configilm_benv2_mock/BigEarthNet-V2-LMDB"]
)
def test_real_files(shared, path):
    folder = shared / "data" / path

    found = check((folder / "data.mdb").read_bytes(), records_of(folder))

    assert set(found.column("length").to_pylist()) <= {115_344, 160_832}


@pytest.mark.slow
def test_a_large_file(large):
    data, folder = large
    meta = RemoteLmdb(Ranges(data), len(data))._meta
    assert meta.depth >= 4  # three levels of branches
    assert meta.entries == 100_000

    check(data, records_of(folder))


def test_mixed_sizes_and_overflow_pages(overflowing):
    data, folder = overflowing

    check(data, records_of(folder))


@pytest.mark.slow
def test_few_bytes_and_many_requests_at_once(large):
    data, _ = large
    told = estimate(Ranges(data), len(data))
    read, heard = Ranges(data, latency_s=0.002), []

    found = index(read, len(data), threads=24, progress=lambda done, all_: heard.append((done, all_)))

    assert told.entries == len(found) == 100_000
    assert read.nbytes <= 1.2 * told.nbytes
    assert len(read.asked) <= told.requests
    assert read.most >= 16
    assert [done for done, _ in heard] == sorted({done for done, _ in heard})
    assert heard[-1][0] == heard[-1][1]


def test_requests_join_pages_by_cost():
    neighbours = plan_requests(np.arange(10, 74), PAGE)
    assert [(r.start, r.nbytes) for r in neighbours] == [(10 * PAGE, 64 * PAGE)]
    assert len(plan_requests(np.arange(1000), PAGE)) == 1000 * PAGE // REQUEST_BYTES + 1
    scattered = np.arange(0, 4000, 40)
    assert len(plan_requests(scattered, PAGE)) == 100
    near = np.array([5, 3, *range(20, 40)])  # a page between the first two, out of order
    requests = plan_requests(near, PAGE)
    assert [(r.start // PAGE, r.nbytes // PAGE) for r in requests] == [(3, 3), (20, 20)]
    assert requests[0].positions.tolist() == [1, 0]


@hypothesis.given(st.lists(st.integers(0, 5000), min_size=1, max_size=300, unique=True))
@hypothesis.settings(max_examples=50)
def test_requests_cover_each_page_once(numbers):
    pages = np.array(numbers)

    requests = plan_requests(pages, PAGE)

    assert sorted(p for r in requests for p in r.positions.tolist()) == list(range(len(pages)))
    for request in requests:
        for number in pages[request.positions]:
            assert request.start <= number * PAGE <= request.start + request.nbytes - PAGE
    assert sum(r.nbytes for r in requests) <= (1 + GAP_SHARE) * len(pages) * PAGE


@hypothesis.given(
    st.dictionaries(st.binary(min_size=1, max_size=511), st.integers(0, 9000), max_size=60),
    st.integers(1, 20),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_whatever_lmdb_writes(tmp_path_factory, sizes, batch):
    folder = tmp_path_factory.mktemp("any")
    data = write(folder, [(k, random.Random(k).randbytes(n)) for k, n in sizes.items()], batch=batch)
    records = records_of(folder)

    check(data, records)

    some = [key for key, _ in records[::2]] + [b"no such key", b"\xff" * 20]
    found = lookup(Ranges(data), len(data), some)
    assert found.column("key").to_pylist() == some
    values = dict(records)
    for row in found.to_pylist():
        if row["key"] in values:
            assert data[row["offset"] :][: row["length"]] == values[row["key"]]
        else:
            assert row["offset"] is row["length"] is None


def test_records_that_were_deleted_are_not_found(tmp_path):
    records = [(f"{n:05}".encode(), bytes(3000)) for n in range(2000)]
    write(tmp_path, records, batch=100)
    with py_lmdb.open(str(tmp_path), map_size=2**32) as env, env.begin(write=True) as txn:
        for key, _ in records[::3]:
            txn.delete(key)

    check((tmp_path / "data.mdb").read_bytes(), records_of(tmp_path))


def test_an_empty_file(tmp_path):
    data = write(tmp_path, [])

    assert len(index(Ranges(data), len(data))) == 0
    assert lookup(Ranges(data), len(data), [b"x"]).column("offset").null_count == 1
    assert estimate(Ranges(data), len(data)).entries == 0


@pytest.mark.slow
def test_a_lookup_reads_only_what_leads_to_its_keys(overflowing):
    data, folder = overflowing
    records = dict(records_of(folder))
    chosen = random.Random(5).sample(sorted(records), 100)
    read = Ranges(data, latency_s=0.05)  # in which eight threads have begun
    remote = RemoteLmdb(read, len(data))

    found = remote.lookup([*chosen, b"missing", chosen[0]])

    assert found.column("offset").null_count == 1
    assert found.column("offset")[-1] == found.column("offset")[0]
    for row in found.to_pylist()[:100]:
        assert data[row["offset"] :][: row["length"]] == records[row["key"]]
    assert read.most >= 8
    told = remote.estimate()
    assert read.nbytes < told.nbytes
    before = len(read.asked)
    remote.lookup(chosen[:1])
    assert len(read.asked) == before + 1  # the leaf: its branches are remembered


def go_on(folder, keep, ready):
    data = (folder / "data.mdb").read_bytes()
    read = Ranges(data, latency_s=0.01)
    index(read, len(data), keep=keep, threads=4, progress=lambda done, _: ready.send(done))


@pytest.mark.slow
def test_a_process_that_is_killed_is_gone_on_with(large, tmp_path):
    data, folder = large
    keep = tmp_path / "kept"
    whole = index(Ranges(data), len(data))
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=go_on, args=(folder, keep, there))
    process.start()
    while here.recv() < 20 * lmdb_index.GROUP_PAGES:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    read = Ranges(data)
    found = index(read, len(data), keep=keep)

    assert found.equals(whole)
    leaves = estimate(read, len(data)).nbytes
    assert read.nbytes < leaves * 0.9
    again = Ranges(data)
    assert index(again, len(data), keep=keep).equals(whole)
    assert again.nbytes < leaves / 5  # branches alone


@pytest.mark.parametrize("harm", ["cut", "flip", "other", "empty", "noise"])
def test_a_kept_index_that_is_torn_or_of_another_file_is_made_again(overflowing, tmp_path, harm):
    data, _ = overflowing
    keep = tmp_path / "kept"
    whole = index(Ranges(data), len(data), keep=keep)
    kept = bytearray(keep.read_bytes())
    if harm == "cut":
        kept = kept[:-7]
    elif harm == "flip":
        kept[len(kept) // 2] ^= 1
    elif harm == "other":
        other = write(tmp_path, [(b"a", b"b")])
        index(Ranges(other), len(other), keep=keep)
        kept = keep.read_bytes()
    elif harm == "empty":
        kept = b""
    else:
        kept = random.Random(1).randbytes(10_000)
    keep.write_bytes(kept)

    assert index(Ranges(data), len(data), keep=keep).equals(whole)
    read = Ranges(data)
    assert index(read, len(data), keep=keep).equals(whole)


def test_the_newer_meta_page_is_taken_and_a_torn_one_is_passed_over(tmp_path):
    write(tmp_path, [(b"a", b"1")])
    data = bytearray(write(tmp_path, [(b"b", b"2")]))
    check(bytes(data), [(b"a", b"1"), (b"b", b"2")])
    transactions = [struct.unpack_from("<Q", data, page * PAGE + 144)[0] for page in (0, 1)]
    newer = transactions.index(max(transactions))

    data[newer * PAGE + 16 : newer * PAGE + 20] = b"torn"

    check(bytes(data), [(b"a", b"1")])


META_FIELDS = {"magic": 16, "version": 20, "page": 40, "flags": 92, "depth": 94, "branches": 96, "leaves": 104,
               "overflow": 112, "entries": 120, "root": 128, "last": 136}  # fmt: skip
"""Where a field of a meta page is."""


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        pytest.param("magic", b"\xbe\xef\xc0\xde", "big-endian", id="big-endian"),
        pytest.param("magic", b"none", "not a readable LMDB", id="magic"),
        pytest.param("version", b"\x09\0\0\0", "not a readable LMDB", id="version"),
        pytest.param("page", struct.pack("<I", 5000), "not a readable LMDB", id="page size"),
        pytest.param("page", struct.pack("<I", 8192), "truncated|damaged|outside", id="another page size"),
        pytest.param("flags", b"\x04\0", "dupsort", id="dupsort"),
        pytest.param("flags", b"\x02\0", "another order", id="reverse"),
        pytest.param("depth", b"\x21\0", "33 levels", id="too deep"),
        pytest.param("depth", b"\x05\0", "is not a branch|are more branches", id="deeper"),
        pytest.param("depth", b"\x01\0", "no tree of 1 levels", id="flatter"),
        pytest.param("branches", struct.pack("<Q", 2**40), "the file has", id="more branches"),
        pytest.param("branches", struct.pack("<Q", 7), "meta page says", id="other branches"),
        pytest.param("leaves", struct.pack("<Q", 2**63), "the file has", id="more leaves"),
        pytest.param(
            "leaves", struct.pack("<Q", 300), "meta page says|more pages than the 3", id="other leaves"
        ),
        pytest.param("entries", struct.pack("<Q", 2**40), "do not fit", id="more records"),
        pytest.param("entries", struct.pack("<Q", 12345), "12,345", id="other records"),
        pytest.param("root", struct.pack("<Q", 2**50), "outside the file", id="root"),
        pytest.param("root", struct.pack("<Q", 1), "outside the file", id="a meta page as root"),
        pytest.param("last", struct.pack("<Q", 2**52), "truncated", id="longer"),
    ],
)
def test_hostile_meta_pages(overflowing, field, value, message):
    data = bytearray(overflowing[0])
    for page in (0, PAGE):
        at = page + META_FIELDS[field]
        data[at : at + len(value)] = value

    with pytest.raises(SourceError, match=message):
        index(Ranges(bytes(data)), len(data))


def pages_of_kind(data, flag):
    return [
        n
        for n in range(2, len(data) // PAGE)
        if struct.unpack_from("<QHH", data, n * PAGE)[0::2] == (n, flag)
    ]


def harm_page(data, name):
    """Damage of one kind; where it is."""
    remote = RemoteLmdb(Ranges(bytes(data)), len(data))
    root = remote._meta.root
    branch = struct.unpack_from("<H", data, root * PAGE + 16)[0] + root * PAGE
    child = struct.unpack_from("<H", data, branch)[0]
    leaf = struct.unpack_from("<H", data, child * PAGE + 16)[0] + child * PAGE  # a node of what is below
    if name == "a loop":
        data[branch : branch + 2] = struct.pack("<H", root)
    elif name == "a child twice":
        second = struct.unpack_from("<H", data, root * PAGE + 18)[0] + root * PAGE
        data[second : second + 6] = data[branch : branch + 6]
    elif name == "a child outside":
        data[branch : branch + 6] = b"\xff" * 6
    elif name == "free space":
        data[root * PAGE + 12 : root * PAGE + 16] = b"\xff" * 4
    elif name == "a node outside":
        data[root * PAGE + 16 : root * PAGE + 18] = b"\xfe\xff"
    elif name == "a key beyond":
        data[leaf + 6 : leaf + 8] = b"\xff\xff"
    elif name == "another number":
        data[child * PAGE] ^= 1
    elif name == "another kind":
        data[child * PAGE + 10] = 4
    elif name == "a database":
        data[leaf + 4] = 2
    elif name == "duplicates":
        data[leaf + 4] = 4
    elif name == "a value beyond":
        data[leaf : leaf + 6] = b"\xff\xff\xff\xff\x01\0"
    return data


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a loop", "page"),
        ("a child twice", "two branches lead to it"),
        ("a child outside", "a child lies outside"),
        ("free space", "cannot be"),
        ("a node outside", "a node lies outside"),
        ("a key beyond", "a key goes beyond"),
        ("another number", "it says that it is page"),
        ("another kind", "is not a leaf"),
        ("a database", "a database within the database"),
        ("duplicates", "sorted duplicates"),
        ("a value beyond", "lies outside|goes beyond"),
    ],
)
def test_hostile_pages(tmp_path, name, message):
    records = [(f"{n:05}".encode(), bytes(n % 3000)) for n in range(300)]
    data = harm_page(bytearray(write(tmp_path, records)), name)

    with pytest.raises(SourceError, match=message) as caught:
        index(Ranges(bytes(data)), len(data))

    assert "page" in str(caught.value)


@pytest.mark.parametrize("seed", range(8))
def test_random_flips_never_hang_or_crash(tmp_path, seed):
    rng = random.Random(seed)
    records = [(f"{n:05}".encode(), rng.randbytes(rng.choice((10, 2500)))) for n in range(1500)]
    whole = write(tmp_path, records)
    tree = [0, 1, *pages_of_kind(whole, 1), *pages_of_kind(whole, 2)]
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4))):
            at = rng.choice(tree) * PAGE + rng.choice((rng.randrange(160), rng.randrange(PAGE)))
            data[at] ^= 1 << rng.randrange(8)
        for call in (
            lambda d: index(Ranges(d), len(d)),
            lambda d: lookup(Ranges(d), len(d), [k for k, _ in records[::50]]),
        ):
            start = time.monotonic()
            try:
                found = call(bytes(data))
            except RebenError:
                continue
            finally:
                assert time.monotonic() - start < 20
            ends = np.array(found.column("offset").drop_null()) + np.array(found.column("length").drop_null())
            assert not len(ends) or ends.max() <= len(data)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_files(overflowing, share):
    data = overflowing[0][: int(len(overflowing[0]) * share)]

    with pytest.raises(SourceError, match=r"truncated|not a readable LMDB"):
        index(Ranges(data), len(data))


def test_a_read_that_comes_short_or_fails_ends_it(overflowing):
    data = overflowing[0]

    with pytest.raises(SourceError, match=r"is truncated: .* bytes came of"):
        index(Ranges(data[: len(data) // 2]), len(data))

    def refuse(offset, length):
        if offset:
            raise StorageError("refused")
        return data[offset : offset + length]

    with pytest.raises(StorageError, match="refused"):
        index(refuse, len(data))


@pytest.mark.slow
def test_through_a_hub(overflowing):
    data, folder = overflowing
    with serve(Hub(expire_after=50)) as hub:
        hub.commit({"data.mdb": folder / "data.mdb"})
        store = Store("hf://datasets/owner/name", {"endpoint": hub.url})
        size, version = store.stat("data.mdb")

        found = index(
            lambda offset, length: store.get_range("data.mdb", offset, length, version=version), size
        )

    assert found.equals(index(Ranges(data), len(data)))
    assert isinstance(found, pa.Table)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["held", "in the way/kept", "/dev/full", "."])
def test_where_nothing_can_be_kept_the_index_is_made_all_the_same(tmp_path, overflowing, caplog, place):
    data, _ = overflowing
    (tmp_path / "in the way").write_bytes(b"a file, no folder")

    with locked(tmp_path / "held"):
        found = index(Ranges(data), len(data), keep=tmp_path / place)

    assert found.equals(index(Ranges(data), len(data)))
    assert "not kept for the next time" in caplog.text
    if place == "held":
        assert (tmp_path / place).read_bytes() == b""
