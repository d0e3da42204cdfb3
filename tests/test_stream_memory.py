"""Whose memory a batch is: lent arrays, pinned batches, and files that change under a stream."""

# ruff: noqa: F811 - fixtures are imported from the tests of the raw loader

import ast
import gc
import json
import mmap
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import weakref
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash

import reben_cloud as rc
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import ChecksumError, SourceError, StorageError
from reben_cloud.files.local import LocalFile
from reben_cloud.formats import tar
from reben_cloud.root.selection import Selection
from reben_cloud.schema import SampleArray
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from reben_cloud.stream.gather import (
    BufferPool,
    LentBatches,
    lend,
)
from reben_cloud.stream.payloads import InMemory
from reben_cloud.stream.readers.base import Places
from tests.conftest import PATIENT_S
from tests.test_stream import NUM_PATCHES, SHARD_SAMPLES, check_pixels, epoch_of, root, selection, truth  # noqa: F401

PACKAGE = Path(rc.__file__).parent


def memory_copy(root, name):
    """The root in a `MemoryStore`: remote, as far as a loader can tell."""
    store = open_store(f"memory://{name}")
    for path in root.rglob("*"):
        if path.is_file():
            store.put(str(path.relative_to(root)), path.read_bytes())
    return rc.open(f"memory://{name}").search()


@pytest.fixture(scope="module")
def remote(root):
    return memory_copy(root, "stream-memory")


# -- lending -----------------------------------------------------------------------------------------


def test_nothing_in_the_package_counts_references():
    names = {"getrefcount", "get_referrers", "get_referents", "_getrefcount", "mmap", "memmap"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            used = {getattr(node, "attr", None), getattr(node, "id", None), getattr(node, "name", None)}
            assert not used & names, f"{path.name} line {node.lineno}"


KEEPERS = {
    "array": lambda a: a,
    "slice": lambda a: a[2:4, 1:],
    "slice of a slice": lambda a: a[1:][1:][:1],
    "other dtype": lambda a: a.view(np.uint8)[..., :1],
    "reshaped": lambda a: a.reshape(-1)[5:6],
    "transposed": lambda a: a.T[0],
    "memoryview": lambda a: memoryview(a[3:]),
    "base": lambda a: a[1:].base,
    "base of the base": lambda a: a.base,
    "iterator": lambda a: iter(a),
    "frombuffer": lambda a: np.frombuffer(a, np.uint8)[7:9],
    "asarray": lambda a: np.asarray(memoryview(a))[1:],
    "read-only broadcast": lambda a: np.broadcast_to(a[0], (3, *a[0].shape))[1],
    "dlpack": lambda a: np.from_dlpack(a)[1:],
    "torch": lambda a: pytest.importorskip("torch").from_numpy(a),
    "torch view": lambda a: pytest.importorskip("torch").from_numpy(a)[1:3].reshape(-1)[2:],
    "torch and back": lambda a: pytest.importorskip("torch").from_numpy(a)[1:].numpy()[1:],
    "torch storage": lambda a: pytest.importorskip("torch").from_numpy(a).untyped_storage(),
}


@pytest.mark.slow
@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS.keys())
def test_whatever_is_left_of_a_lent_array_keeps_its_memory(keep):
    returned = []
    memory = np.zeros((6, 4), np.int32)
    lent = lend(memory, partial(returned.append, "memory"))
    assert np.shares_memory(lent, memory)

    kept = keep(lent)
    del lent
    gc.collect()

    assert not returned
    del kept
    gc.collect()
    assert returned == ["memory"]


SPECS = {
    "before": SampleArray((6,), np.dtype(np.bool_)),
    "a": SampleArray((6, 4), np.dtype(np.int32)),
    "none": SampleArray((6, 0), np.dtype(np.float32)),
    "after": SampleArray((6, 3, 5), np.dtype(np.uint16)),
}


@pytest.mark.slow
@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS.keys())
def test_whatever_is_left_of_one_array_of_a_batch_keeps_the_memory_of_all(keep):
    buffers = LentBatches(SPECS, keep=3)
    slot = buffers.take()
    slot.arrays["a"][:] = 7
    batch = buffers.hand_out(slot, 6)

    kept = keep(batch["a"])
    del batch
    gc.collect()

    assert buffers.take() is not slot
    del kept
    gc.collect()
    assert buffers.take() is slot


def test_the_arrays_of_a_slot_do_not_overlap_and_begin_with_lines_of_the_cache():
    buffers = LentBatches(SPECS, keep=3)
    slot = buffers.take()
    for number, array in enumerate(slot.arrays.values()):
        array.reshape(-1).view(np.uint8)[:] = number

    batch = buffers.hand_out(slot, 4)

    assert batch.keys() == SPECS.keys()
    for number, (name, (shape, dtype)) in enumerate(SPECS.items()):
        array = batch[name]
        assert (array.shape, array.dtype, array.ctypes.data % 64) == ((4, *shape[1:]), dtype, 0)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert (array.reshape(-1).view(np.uint8) == number).all()
        assert array.size == 0 or np.shares_memory(array, slot.arrays[name])


@pytest.fixture
def small_heap():
    """The collector looks at what the test makes, not at all that hundreds of tests before it have left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("small_heap")
def test_memory_comes_back_by_the_collector_in_any_thread_while_others_take_it():
    pool = BufferPool(1 << 12, keep=4)
    wrong, stop = [], threading.Event()

    def use(number):
        while not stop.is_set():
            mine = pool.take(1 << 12)
            mine[:] = number
            circle = [mine]
            circle.append(circle)  # only the collector ends it
            if (mine != number).any():
                wrong.append(number)
            del mine, circle

    threads = [threading.Thread(target=use, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        gc.collect()
    stop.set()
    for thread in threads:
        thread.join(timeout=PATIENT_S)

    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_what_comes_back_beyond_what_is_kept_is_freed():
    pool = BufferPool(100, keep=2)
    taken = [pool.take(100) for _ in range(10)]

    taken.clear()

    assert len(pool._free) == 2


@pytest.mark.parametrize("counted", [1, 2, 3, 4, 5, 2**30])
@pytest.mark.parametrize("where", ["folder", "remote", "remote by ranges"])
def test_batches_are_right_whatever_an_interpreter_counts(root, remote, truth, where, counted, monkeypatch):
    """CPython 3.14 counts one reference less for what a local variable borrows; others may count as they like."""
    monkeypatch.setattr(sys, "getrefcount", lambda _: counted)
    selection = rc.open(root).search() if where == "folder" else remote
    step = 25 if where == "remote by ranges" else 1
    some = type(selection)(selection.dataset, selection.table, selection.rows[::step])
    kept = []

    for _ in range(2):
        # A slice of one array, of another nothing but a view of its last row.
        kept += [
            (batch["index"].copy(), batch["s2_10m"][1:], batch["s1"][-1], batch["map"][:1, 60:])
            for batch in RawLoader(some, batch_size=16, prefetch=8)
        ]

    for index, s2, s1, last in kept:
        index = index * step
        np.testing.assert_array_equal(s2, truth["s2_10m"][index[1:]])
        np.testing.assert_array_equal(s1, truth["s1"][index[-1]])
        np.testing.assert_array_equal(last, truth["map"][index[:1], 60:])


def test_every_batch_of_an_epoch_may_be_kept_from_a_remote_root_through_a_cache(remote, truth, tmp_path):
    loader = RawLoader(remote, batch_size=16, cache_dir=tmp_path, cache_bytes=20_000_000)

    kept = [batch for _ in range(3) for batch in loader]

    check_pixels(kept, truth)


def test_tensors_and_their_slices_may_be_kept_for_an_epoch(selection, truth):
    torch = pytest.importorskip("torch")
    from reben_cloud.torch import StreamLoader

    kept = []
    for batch in StreamLoader(selection, batch_size=16):
        rows = batch["index"].clone()
        kept.append((rows.numpy(), batch["s2_20m"][2:].view(-1, 60, 60)[3:], batch["s1"].numpy()[1:, 0]))

    for rows, s2, s1 in kept:
        expected = truth["s2_20m"][rows[2:]].reshape(-1, 60, 60)[3:]
        assert torch.equal(s2, torch.from_numpy(expected))
        np.testing.assert_array_equal(s1, truth["s1"][rows[1:], 0])


def test_a_slot_that_was_lent_is_taken_again_only_when_it_is_back():
    buffers = LentBatches({"x": SampleArray((4, 2, 2), np.dtype(np.uint16))}, keep=3)
    slot = buffers.take()
    batch = buffers.hand_out(slot, 3)
    view = batch["x"][1]
    del batch

    other = buffers.take()
    assert other is not slot
    del view
    assert buffers.take() is slot


# -- pinned memory -----------------------------------------------------------------------------------


class SlowDevice:
    """A device that reads host memory late, and the allocator of pinned memory that knows it.

    As torch's caching host allocator: a copy notes an event on the block that it reads, and a block whose
    tensors are gone is given out again when its events are done. The events are passed in, so that the
    order of things is the test's.
    """

    def __init__(self, torch):
        self.torch = torch
        self.queue = deque()
        self.blocks = []

    def allocate(self, nbytes):
        for block in self.blocks:
            is_free = block["tensor"]() is None and all(event.is_set() for event in block["events"])
            if is_free and block["memory"].nbytes == nbytes:
                break
        else:
            block = {"memory": np.zeros(nbytes, np.uint8), "events": []}
            self.blocks.append(block)
        # A tensor of its own each time, alive as long as the batch or a view of it is.
        array = lend(block["memory"], lambda: None)
        block["tensor"], block["events"] = weakref.ref(array.base), []
        return self.torch.from_numpy(array)

    def copy(self, tensor):
        """``tensor.to(device, non_blocking=True)``: reads the memory as it is when the device comes to it."""
        address = tensor.untyped_storage().data_ptr()
        (block,) = (b for b in self.blocks if b["memory"].__array_interface__["data"][0] == address)
        event, out = threading.Event(), self.torch.empty_like(tensor)
        offset, nbytes = tensor.storage_offset() * tensor.element_size(), tensor.nbytes
        block["events"].append(event)

        def run():
            read = self.torch.from_numpy(block["memory"][offset : offset + nbytes].copy())
            out.view(-1).view(self.torch.uint8).copy_(read)
            event.set()

        self.queue.append(run)
        return out

    def work(self, count):
        """Do the oldest copies that are waiting."""
        for _ in range(min(count, len(self.queue))):
            self.queue.popleft()()


@pytest.mark.parametrize("behind", [1, 3, 7, 10**6], ids=lambda n: f"{n} batches behind")
def test_a_device_that_is_behind_never_reads_a_later_batch(selection, truth, behind):
    torch = pytest.importorskip("torch")
    from reben_cloud.torch import PinnedBatches

    device = SlowDevice(torch)
    buffers = partial(PinnedBatches, allocate=device.allocate)
    copied = []

    for _ in range(2):
        for batch in RawLoader(selection, batch_size=16, buffers=buffers):
            tail = batch["s1"][5:]  # a copy of a part counts as well
            copied.append((batch["index"].numpy().copy(), device.copy(batch["s2_10m"]), device.copy(tail)))
            del batch, tail
            device.work(2 if len(copied) > behind else 0)
    num_blocks = len(device.blocks)
    device.work(10**9)

    for index, s2, s1 in copied:
        np.testing.assert_array_equal(s2.numpy(), truth["s2_10m"][index])
        np.testing.assert_array_equal(s1.numpy(), truth["s1"][index[5:]])
    if behind < 10:
        assert num_blocks <= 8 * (behind + 6), "memory that the device has read is used again"


@pytest.mark.gpu
@pytest.mark.parametrize("stream", ["current", "side"])
def test_a_gpu_that_is_behind_never_reads_a_later_batch(selection, truth, stream):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from reben_cloud.torch import StreamLoader

    side = torch.cuda.Stream() if stream == "side" else torch.cuda.current_stream()
    copied = []
    for _ in range(3):
        for batch in StreamLoader(selection, batch_size=16):
            assert batch["s2_10m"].is_pinned()
            with torch.cuda.stream(side):
                torch.cuda._sleep(20_000_000)  # cycles: about 10 ms, far more than a batch takes to fill
                s2 = batch["s2_10m"].to("cuda", non_blocking=True)
                part = batch["s1"][5:].to("cuda", non_blocking=True)
            copied.append((batch["index"].numpy().copy(), s2, part))
            del batch
    torch.cuda.synchronize()

    for index, s2, part in copied:
        np.testing.assert_array_equal(s2.cpu().numpy(), truth["s2_10m"][index])
        np.testing.assert_array_equal(part.cpu().numpy(), truth["s1"][index[5:]])


# -- files that change while they are read -----------------------------------------------------------


@pytest.fixture
def own_root(root, tmp_path):
    shutil.copytree(root, tmp_path / "root")
    return tmp_path / "root"


def cut(path):
    os.truncate(path, path.stat().st_size // 3)


def flip(path):
    """Change the last byte of every payload, with the times of the file as they were."""
    modality = path.parent.name if path.parent.name in REBEN.modality_names else path.name.split("-")[-2]
    status, data = path.stat(), bytearray(path.read_bytes())
    end = max(c.source + c.nbytes for c in REBEN.modality(modality).copies)
    for start in range(tar.PAYLOAD_OFFSET, len(data) - end, tar.record_bytes(REBEN.modality(modality))):
        data[start + end - 1] ^= 1
    with open(path, "r+b") as file:  # which is never shorter meanwhile
        file.write(data)
        file.flush()  # its times by the open file: a loader that notices may take away the name at once
        os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


def swap(path):
    """Put another shard, of the same size, in its place."""
    same = [p for p in path.parent.iterdir() if p != path and p.stat().st_size == path.stat().st_size]
    other = path.with_name("other")
    shutil.copy(same[0], other)
    os.replace(other, path)


@pytest.mark.parametrize("part", [1, 7], ids=["whole shards", "single rows"])
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        pytest.param(cut, (StorageError, ChecksumError), "cut short", id="cut"),
        pytest.param(flip, ChecksumError, "xxh3 differs", id="flipped"),
    ],
)
def test_a_local_shard_that_changes_between_epochs_or_batches_is_named(own_root, part, change, error, match):
    chosen = rc.open(own_root).search()
    chosen = type(chosen)(chosen.dataset, chosen.table, chosen.rows[::part])
    loader = RawLoader(chosen, batch_size=4, lanes=1, prefetch=2, gather_threads=1)
    epoch_of(loader)  # everything was seen to be right once
    iterator = iter(loader)
    next(iterator)
    for path in own_root.glob("shards/*/s2/*.tar"):
        change(path)

    with pytest.raises(error, match=match) as caught:
        list(iterator)

    assert ".tar" in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "cache", "lmdb"])
def test_a_change_that_no_time_of_the_file_shows_is_met(own_root, remote, truth, tmp_path, kind):
    """Who writes through a mapping marks the file once per page, and on tmpfs never: times cannot vouch for bytes."""
    place, options, chosen = own_root / "shards", {}, rc.open(own_root).search()
    if kind == "cache":
        place, options, chosen = tmp_path / "cache", {"cache_dir": tmp_path / "cache"}, remote
    elif kind == "lmdb":
        chosen.export_lmdb(tmp_path / "export")
        place, chosen = tmp_path / "export", rc.open(tmp_path / "export").search()
    loader = RawLoader(chosen, batch_size=16, **options)
    epoch_of(loader)
    (path, *_) = sorted(place.rglob("data.mdb" if kind == "lmdb" else "*train-s1-000000.tar"))
    part = REBEN.modality("s1").copies[0]
    payload = path.read_bytes().find(REBEN.modality("s1").payload_header)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        target = payload + part.source + 7
        memory[target] = memory[target]  # the page is dirty from now on
        check_pixels(epoch_of(loader), truth)
        memory[target] ^= 1

        if kind == "cache":
            check_pixels(epoch_of(loader), truth)
            assert loader.stats().retries == 1
        else:
            with pytest.raises(ChecksumError, match=r"xxh3 differs|is not the payload that was written"):
                epoch_of(loader)


def test_a_shard_in_the_place_of_another_is_named_though_its_size_is_right(own_root):
    swap(sorted(own_root.glob("shards/train/s1/*.tar"))[0])

    with pytest.raises(ChecksumError, match=r"train-s1-000000.tar has no member S2.*\.s1\.safetensors"):
        epoch_of(RawLoader(rc.open(own_root).search()))


@pytest.mark.parametrize("change", [cut, flip, swap, Path.unlink], ids=lambda change: change.__name__)
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_cached_shard_that_changes_is_fetched_again(remote, truth, tmp_path, change, when):
    loader = RawLoader(remote, batch_size=16, cache_dir=tmp_path, lanes=2)
    epoch_of(loader)
    iterator = iter(loader)
    batches = [] if when == "before" else [{n: a.copy() for n, a in next(iterator).items()}]
    files = sorted(tmp_path.glob("*.tar"))
    for path in files:
        if change is not swap:
            change(path)
    if change is swap:
        for one, other in zip(files[::2], files[1::2], strict=False):
            shutil.copy(one, tmp_path / "x")
            os.replace(other, one)
            os.replace(tmp_path / "x", other)

    batches += [{n: a.copy() for n, a in batch.items()} for batch in iterator]

    assert np.array_equal(np.sort(np.concatenate([b["index"] for b in batches])), np.arange(NUM_PATCHES))
    check_pixels(batches, truth)
    epoch_of(loader)
    last = loader.stats().requests
    check_pixels(epoch_of(loader), truth)
    assert loader.stats().requests == last, "the cache is whole again"


def test_an_lmdb_that_is_cut_short_while_it_is_read_is_an_error(root, tmp_path):
    rc.open(root).search(split="train").export_lmdb(tmp_path / "export")
    loader = RawLoader(rc.open(tmp_path / "export").search(), batch_size=4, lanes=1, prefetch=0)
    epoch_of(loader)
    iterator = iter(loader)
    next(iterator)

    os.truncate(tmp_path / "export" / "data.mdb", 1_000_000)

    with pytest.raises(
        (StorageError, SourceError), match=r"data\.mdb (ends at byte 1,000,000.*cut short|is truncated)"
    ):
        list(iterator)


def test_an_lmdb_that_another_program_writes_to_is_an_error(root, tmp_path):
    import lmdb as py_lmdb

    rc.open(root).search(split="train").export_lmdb(tmp_path / "export")
    loader = RawLoader(rc.open(tmp_path / "export").search(), batch_size=4, lanes=1, prefetch=0)
    iterator = iter(loader)
    next(iterator)
    with py_lmdb.open(str(tmp_path / "export"), map_size=2**30) as env, env.begin(write=True) as txn:
        txn.put(b"more", b"x")

    with pytest.raises(SourceError, match="was written to while it was read"):
        list(iterator)


def test_a_file_system_that_answers_in_parts_is_read_whole(tmp_path, monkeypatch):
    data = os.urandom(10_000)
    (tmp_path / "file").write_bytes(data)
    file = LocalFile(tmp_path / "file")
    preadv, pread = os.preadv, os.pread
    monkeypatch.setattr(os, "preadv", lambda f, pieces, start: preadv(f, [memoryview(pieces[0])[:7]], start))
    monkeypatch.setattr(os, "pread", lambda f, count, start: pread(f, min(count, 999), start))
    head, rest = bytearray(512), memoryview(bytearray(8000))

    file.read_into([head, rest], 100, 8512)

    assert bytes(head) + bytes(rest) == data[100:8612]


def test_files_are_closed_when_nothing_needs_them(selection):
    loader = RawLoader(selection, batch_size=16)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        epoch_of(loader)
    gc.collect()

    assert len(os.listdir("/proc/self/fd")) <= before


# -- who is delivered --------------------------------------------------------------------------------


class RotatedTable:
    """A table some of whose columns are moved on by a row, within the first shard of train."""

    def __init__(self, table, names):
        self._table, self._moved = table, set(names)

    def __getattr__(self, name):
        return getattr(self._table, name)

    def read(self, groups, columns, **options):
        table = self._table.read(groups, columns, **options)
        place = self._table.read(groups, ["reben:shard_group", "reben:shard"]).to_pylist()
        rows = [i for i, row in enumerate(place) if tuple(row.values()) == ("train", 0)]
        order = np.arange(len(place))
        order[rows] = np.roll(rows, 1)
        for name in set(columns) & self._moved:
            at = table.column_names.index(name)
            table = table.set_column(at, name, table.column(name).take(pa.array(order)))
        return table

    def take(self, rows, columns):
        groups, where = self._table.places(rows)
        return self.read(groups, columns).take(pa.array(where))


def rotated(selection, *names):
    return Selection(selection.dataset, RotatedTable(selection.table, names), selection.rows)


SUMS = [f"reben:{m}_xxh3" for m in ("s2", "s1", "map")]
PLACE = ["reben:shard_row", *SUMS]


@pytest.mark.parametrize("step", [1, 5], ids=["whole shards", "ranges"])
@pytest.mark.parametrize("where", ["folder", "remote", "cache"])
def test_a_table_whose_rows_are_of_other_patches_is_an_error(root, remote, tmp_path, where, step):
    """Rows and checksums fit each other, so pixels alone would not show that they are another patch's."""
    selection = rc.open(root).search() if where == "folder" else remote
    some = type(selection)(selection.dataset, selection.table, selection.rows[::step])
    wrong = rotated(some, *PLACE)
    options = {"cache_dir": tmp_path} if where == "cache" else {}

    with pytest.raises(ChecksumError, match=r"train-(s2|s1|map)-000000\.tar"):
        epoch_of(RawLoader(wrong, batch_size=16, **options))


def test_a_zarr_row_of_another_patch_is_an_error(selection):
    wrong = rotated(selection, "reben:zarr_row", "reben:product")

    with pytest.raises(ChecksumError, match=r"zarr/.*\.zarr: row \d+ is not S2.*, as patches.parquet says"):
        epoch_of(RawLoader(wrong, batch_size=16, form="zarr"))


@pytest.mark.parametrize("row", [-1, SHARD_SAMPLES, 2**40])
def test_a_row_outside_its_shard_is_named(row):
    with pytest.raises(
        ChecksumError, match=rf"places P in row {row} of shard 3 of train, which has 16 samples"
    ):
        Places(
            shard=np.array([0]),
            row=np.array([row]),
            shards=[("train", 3)],
            num_samples=np.array([SHARD_SAMPLES]),
            ids=np.array([b"P"]),
            checksums={},
        )


@pytest.mark.parametrize("starts", [[-1], [0, 11], [2**62]])
def test_no_payload_is_read_outside_its_memory(starts):
    with pytest.raises(ChecksumError, match=r"thing: a payload of 10 bytes .* is not inside its 20 bytes"):
        InMemory(np.zeros(20, np.uint8), np.array(starts), 10, name="thing")


# -- a campaign --------------------------------------------------------------------------------------

CAMPAIGN = """
    import json, mmap, os, random, shutil, sys, threading, time
    from pathlib import Path
    import xxhash
    import reben_cloud as rc
    from reben_cloud.errors import RebenError
    from reben_cloud.store import open_store
    from reben_cloud.stream import RawLoader

    kind, root, victims, digests, seed, seconds, patient_s = sys.argv[1:]
    expected = json.loads(Path(digests).read_text())
    victims, random = Path(victims), random.Random(int(seed))
    options = {"batch_size": 8, "lanes": 4, "gather_threads": 2}
    if kind == "cache":
        store = open_store("memory://campaign")
        for path in Path(root).rglob("*"):
            if path.is_file():
                store.put(str(path.relative_to(root)), path.read_bytes())
        url, options["cache_dir"] = "memory://campaign", str(victims)
    else:
        url = root
    chosen = rc.open(url).search(**({"split": "train"} if kind == "lmdb" else {}))
    ids = chosen.patch_ids
    loader = RawLoader(chosen, **options)
    stop = threading.Event()

    def vandal():
        # A file is whole again after each act, so that the stream goes on.
        while not stop.is_set():
            time.sleep(random.random() * 0.01)
            files = [p for p in victims.rglob("*") if p.suffix in (".tar", ".mdb")]
            if not files:
                continue
            path = random.choice(files)
            try:
                data, status = path.read_bytes(), path.stat()
                if not data:
                    continue
                act = random.choice(["flip", "hide", "map", "cut", "cut", "replace", "unlink", "empty"])
                if act == "map":  # the page is dirty before: nothing tells when it changes
                    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                        places = [random.randrange(len(memory)) for _ in range(40)]
                        for value in (0, 0, 1 << random.randrange(8)):
                            for place in places:
                                memory[place] ^= value
                            time.sleep(random.random() * 0.01)
                elif act in ("flip", "hide"):
                    with open(path, "r+b") as file:
                        for _ in range(40):
                            place = random.randrange(len(data))
                            file.seek(place)
                            file.write(bytes([data[place] ^ 1 << random.randrange(8)]))
                    if act == "hide":
                        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
                elif act == "cut":
                    os.truncate(path, random.randrange(len(data)))
                elif act == "empty":
                    os.truncate(path, 0)
                elif act == "replace":
                    other = path.with_name("new")
                    shutil.copy(random.choice(files), other)
                    os.replace(other, path)
                else:
                    path.unlink()
                counts[act] = counts.get(act, 0) + 1
                time.sleep(random.random() * 0.02)
                if kind != "cache" or random.random() < 0.2:
                    with open(path, "r+b" if path.exists() else "wb") as file:  # in place, as bad tools do
                        file.write(data)
                        file.truncate(len(data))
            except FileNotFoundError:
                pass  # the cache was quicker

    counts, errors, delivered = {}, {}, 0
    thread = threading.Thread(target=vandal)
    thread.start()
    least, most = time.monotonic() + float(seconds), time.monotonic() + float(patient_s)

    def is_enough():
        seen = delivered and sum(counts.values()) > 20 and (kind == "cache" or errors)
        return time.monotonic() > (least if seen else most)

    while not is_enough():
        try:
            for batch in loader:
                for row, index in enumerate(batch["index"].tolist()):
                    digest = xxhash.xxh3_64()
                    for name in ("s2_10m", "s2_20m", "s2_60m", "s1", "map"):
                        digest.update(batch[name][row].data)
                    assert digest.intdigest() == expected[ids[index]], f"{ids[index]} has other pixels"
                    delivered += 1
                if is_enough():
                    break
        except RebenError as error:
            name = type(error).__name__
            errors[name] = errors.get(name, 0) + 1
            assert any(word in str(error) for word in (".tar", ".mdb", "record", "not an LMDB")), error
    stop.set()
    thread.join()
    print(json.dumps({"delivered": delivered, "errors": errors, "acts": counts}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "cache", "lmdb"])
def test_a_vandal_is_met_with_right_pixels_or_clear_errors(own_root, truth, tmp_path, kind):
    ids = rc.open(own_root).search().patch_ids
    digests = {}
    for position, patch_id in enumerate(ids):
        digest = xxhash.xxh3_64()
        for name in ("s2_10m", "s2_20m", "s2_60m", "s1", "map"):
            digest.update(np.ascontiguousarray(truth[name][position]).data)
        digests[patch_id] = digest.intdigest()
    (tmp_path / "digests.json").write_text(json.dumps(digests))
    (tmp_path / "campaign.py").write_text(textwrap.dedent(CAMPAIGN))
    place, victims = own_root, own_root / "shards"
    if kind == "cache":
        victims = tmp_path / "cache"
    elif kind == "lmdb":
        rc.open(own_root).search(split="train").export_lmdb(tmp_path / "export")
        place = victims = tmp_path / "export"

    done = subprocess.run(
        [
            *(sys.executable, tmp_path / "campaign.py", kind, place, victims, tmp_path / "digests.json"),
            *("5", "4", str(PATIENT_S / 2)),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENT_S,
        check=False,
    )

    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    result = json.loads(done.stdout)
    assert result["delivered"] > 0
    assert sum(result["acts"].values()) > 20
    if kind == "cache":
        assert not result["errors"], "what a cache lost is fetched again"
    else:
        assert result["errors"]


# -- shards kept in memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["arrays", "records"])
@pytest.mark.parametrize("where", ["folder", "remote"])
def test_what_is_kept_in_memory_is_read_once(root, remote, truth, where, layout):
    chosen = rc.open(root).search() if where == "folder" else remote
    loader = RawLoader(chosen, batch_size=16, memory_bytes=10**9, layout=layout, lanes=1)
    first = epoch_of(loader)
    read = loader.stats().bytes_read
    later = [batch for _ in range(2) for batch in epoch_of(loader)]

    assert loader.stats().bytes_read == read > 0
    if layout == "arrays":
        check_pixels(first + later, truth)
    for batches in (first, later[: len(first)], later[len(first) :]):
        assert sorted(np.concatenate([batch["index"] for batch in batches])) == list(range(NUM_PATCHES))


def test_what_does_not_fit_in_memory_is_read_as_ever(root, truth):
    folder = rc.open(root).search()
    sizes = [path.stat().st_size for path in root.glob("shards/*/*/*.tar")]
    loader = RawLoader(folder, batch_size=16, memory_bytes=sum(sizes) // 2, lanes=1)
    epoch_of(loader)
    first = loader.stats().bytes_read

    check_pixels(epoch_of(loader), truth)

    assert 0 < loader.stats().bytes_read - first < 0.8 * sum(sizes)
    assert sum(data.nbytes for data in loader._reader._kept._shards.values()) <= sum(sizes) // 2


def test_what_is_kept_no_file_can_change(own_root, truth):
    loader = RawLoader(rc.open(own_root).search(), batch_size=16, memory_bytes=10**9, lanes=1)
    epoch_of(loader)
    for path in own_root.glob("shards/*/*/*.tar"):
        flip(path)

    check_pixels(epoch_of(loader), truth)

    with pytest.raises(ChecksumError, match=r"\.tar: the .* bytes read are not .*xxh3 differs"):
        epoch_of(RawLoader(rc.open(own_root).search(), batch_size=16, memory_bytes=10**9))


def test_memory_and_a_folder_are_not_both_for_shards(remote, tmp_path):
    with pytest.raises(ValueError, match="give one of them"):
        RawLoader(remote, memory_bytes=10**9, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="memory_bytes must not be negative, got -1"):
        RawLoader(remote, memory_bytes=-1)
