"""The loader against the pixels themselves, on folders and a real S3 server, with and without faults."""

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace

import numpy as np
import pytest

import reben_cloud as rc
from reben_cloud.bigearthnet.reben import MAP, REBEN, S2
from reben_cloud.errors import ChecksumError, NotFoundError, StorageError
from reben_cloud.formats import tar
from reben_cloud.root.manifest import Manifest
from reben_cloud.sampling import EpochOrder
from reben_cloud.store import BUDGET
from reben_cloud.stream import RawLoader
from reben_cloud.stream.cache import ShardCache
from reben_cloud.stream.readers.shards import plan_ranges
from tests.conftest import PATIENT_S
from tests.roots import synthetic_root

NUM_PATCHES = 150
SHARD_SAMPLES = 16


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A root of 150 synthetic patches in shards of 16."""
    folder = tmp_path_factory.mktemp("stream") / "root"
    synthetic_root(folder, NUM_PATCHES, num_products=6, shard_samples=SHARD_SAMPLES)
    return folder


@pytest.fixture(scope="session")
def truth(root):
    """Array name -> pixels of every patch, in the order of the whole selection, read with `tarfile`."""
    found = {}
    for path in sorted(root.glob("shards/*/*/*.tar")):
        modality = path.parent.name
        for patch_id, payload, _ in tar.iter_samples(REBEN.modality(modality), path.read_bytes()):
            found.setdefault(patch_id, {}).update(REBEN.modality(modality).stack(payload))
    ids = rc.open(root).search().patch_ids
    return {name: np.stack([found[i][name] for i in ids]) for name in next(iter(found.values()))}


@pytest.fixture
def selection(root):
    return rc.open(root).search()


def epoch_of(loader):
    """All batches of an epoch, copied."""
    return [{name: array.copy() for name, array in batch.items()} for batch in loader]


def indices(batches):
    return np.concatenate([b["index"][b["valid"]] for b in batches])


def check_pixels(batches, truth):
    for batch in batches:
        n = np.count_nonzero(batch["valid"])
        for name in truth.keys() & batch.keys():
            np.testing.assert_array_equal(batch[name][:n], truth[name][batch["index"][:n]], err_msg=name)


def same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_an_epoch_delivers_every_patch_once_with_its_own_pixels_and_labels(selection, truth):
    loader = RawLoader(selection, batch_size=16)

    batches = epoch_of(loader)

    assert len(batches) == len(loader) == 10
    assert np.array_equal(np.sort(indices(batches)), np.arange(NUM_PATCHES))
    check_pixels(batches, truth)
    expected = rc.labels.encode_many(selection.column("reben:labels")) if hasattr(rc, "labels") else None
    if expected is not None:
        for batch in batches:
            np.testing.assert_array_equal(batch["labels"], expected[batch["index"]])


def test_shapes_and_dtypes_are_the_documented_ones(selection):
    batch = next(iter(RawLoader(selection, batch_size=5)))

    assert {name: (a.dtype.name, a.shape) for name, a in batch.items()} == {
        "s2_10m": ("uint16", (5, 4, 120, 120)),
        "s2_20m": ("uint16", (5, 6, 60, 60)),
        "s2_60m": ("uint16", (5, 2, 20, 20)),
        "s1": ("float32", (5, 2, 120, 120)),
        "map": ("uint16", (5, 120, 120)),
        "labels": ("float32", (5, 19)),
        "index": ("int64", (5,)),
        "valid": ("bool", (5,)),
    }
    assert all(a.flags.c_contiguous for a in batch.values())


def test_the_batches_are_those_of_the_order(selection):
    loader = RawLoader(selection, batch_size=8, seed=3, epoch=2, lanes=4, window=2)
    stored, (_, order) = loader._stored, loader._plan()
    assert isinstance(order, EpochOrder)

    found = indices(epoch_of(loader))

    assert np.array_equal(found, stored.index[order.take(np.arange(NUM_PATCHES))])


def run_ranks(selection, world_size, batch_size, *, state=None, steps=None, **options):
    """(Patches of each global batch, sorted; the state after them), run by as many loaders as there are ranks."""
    ranks, states = [], []
    for rank in range(world_size):
        loader = RawLoader(selection, batch_size=batch_size, rank=rank, world_size=world_size, **options)
        if state is not None:
            loader.load_state_dict(state)
        iterator, batches = iter(loader), []
        for batch in iterator:
            batches.append({name: batch[name].copy() for name in ("index", "valid", "map")})
            if len(batches) == steps:
                break
        states.append(loader.state_dict())
        iterator.close()
        ranks.append(batches)
    assert len({len(batches) for batches in ranks}) == 1
    assert len({state["position"] for state in states}) == 1
    for batch in (batch for batches in ranks for batch in batches):
        assert len(batch["index"]) == (batch_size if world_size > 1 else np.count_nonzero(batch["valid"]))
        assert not batch["map"][~batch["valid"]].any()
        assert (batch["index"][~batch["valid"]] == -1).all()
    together = [
        np.sort(np.concatenate([b["index"][b["valid"]] for b in step])) for step in zip(*ranks, strict=True)
    ]
    return [step.tolist() for step in together], states[0]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 7, 8, 12])
def test_ranks_deliver_the_same_global_batches_as_one_process(selection, world_size, drop_last):
    options = {"seed": 5, "drop_last": drop_last, "modalities": ["map"]}
    per_rank = max(1, 16 // world_size)
    alone = epoch_of(RawLoader(selection, batch_size=per_rank * world_size, **options))

    together, _ = run_ranks(selection, world_size, per_rank, **options)

    assert together == [sorted(whole["index"].tolist()) for whole in alone]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("step", [0, 1, 4, 9])
def test_resumed_on_any_number_of_ranks_it_continues_identically(selection, step, world_size):
    options = {"seed": 9, "epoch": 1, "modalities": ["map"]}
    global_batch = {3: 15, 7: 14}.get(world_size, 16)
    uninterrupted = epoch_of(RawLoader(selection, batch_size=global_batch, **options))
    first = RawLoader(selection, batch_size=global_batch, **options)
    iterator = iter(first)
    for _ in range(step):
        next(iterator)
    state = first.state_dict()
    iterator.close()

    assert all(type(value) is int for value in state.values())
    rest, _ = run_ranks(
        selection, world_size, global_batch // world_size, state=state, **{**options, "epoch": 0}
    )

    assert rest == [sorted(whole["index"].tolist()) for whole in uninterrupted[step:]]


def test_eight_then_seven_then_three_ranks_deliver_every_patch_once(selection):
    options = {"seed": 4, "modalities": ["map"]}

    first, state = run_ranks(selection, 8, 5, steps=1, **options)
    second, state = run_ranks(selection, 7, 5, state=state, steps=2, **options)
    assert state["position"] == 8 * 5 + 2 * 7 * 5
    third, state = run_ranks(selection, 3, 4, state=state, **options)

    assert [len(batch) for batch in (*first, *second)] == [40, 35, 35]
    assert [len(batch) for batch in third] == [12, 12, 12, 4]
    delivered = [patch for batch in (*first, *second, *third) for patch in batch]
    assert sorted(delivered) == list(range(NUM_PATCHES))
    assert (state["epoch"], state["position"]) == (1, 0)


@pytest.mark.parametrize("position", [1, 13, 149])
def test_any_position_is_continued_by_any_number_of_ranks(selection, position):
    loader = RawLoader(selection, batch_size=1, modalities=["map"])
    whole = indices(epoch_of(loader))
    loader.set_epoch(0)
    state = {**loader.state_dict(), "position": position}

    rest, _ = run_ranks(selection, 4, 8, state=state, modalities=["map"])

    expected = whole[position:]
    assert rest == [sorted(expected[i : i + 32].tolist()) for i in range(0, len(expected), 32)]


def test_resuming_reads_nothing_of_what_was_consumed(selection, root):
    loader = RawLoader(selection, batch_size=16, lanes=1, prefetch=0)
    full = RawLoader(selection, batch_size=16, lanes=1, prefetch=0)
    epoch_of(full)
    loader.load_state_dict({**loader.state_dict(), "position": 128})

    epoch_of(loader)

    assert loader.stats().bytes_read < full.stats().bytes_read / 3


def test_epochs_follow_each_other_and_set_epoch_goes_back(selection):
    loader = RawLoader(selection, batch_size=50, modalities=["map"])
    first, second = epoch_of(loader), epoch_of(loader)

    loader.set_epoch(0)

    assert loader.state_dict()["epoch"] == 0
    assert not np.array_equal(indices(first), indices(second))
    same(epoch_of(loader), first)


def test_an_epoch_is_over_with_its_last_batch_even_if_nobody_asks_for_more(selection):
    loader = RawLoader(selection, batch_size=50, modalities=["map"])
    iterator = iter(loader)
    first = [next(iterator)["index"].copy() for _ in range(len(loader))]

    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 0)
    second = [batch["index"].copy() for batch in loader]
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))


@pytest.mark.parametrize("interfere", [iter, lambda loader: loader.set_epoch(3)], ids=["iter", "set_epoch"])
def test_an_iterator_that_was_left_behind_says_so(selection, interfere):
    loader = RawLoader(selection, batch_size=16, modalities=["map"])
    iterator = iter(loader)
    next(iterator)
    interfere(loader)
    state = loader.state_dict()

    with pytest.raises(RuntimeError, match="left behind"):
        next(iterator)

    assert loader.state_dict() == state


@pytest.mark.parametrize("position", [-16, 10**6])
def test_a_state_outside_the_epoch_is_refused(selection, position):
    loader = RawLoader(selection, modalities=["map"])

    with pytest.raises(ValueError, match=f"position must be in .*, got {position}"):
        loader.load_state_dict({**loader.state_dict(), "position": position})


def test_a_state_of_another_selection_of_the_same_size_is_refused(root):
    dataset = rc.open(root)
    ids = dataset.search().patch_ids
    state = RawLoader(dataset.search(ids=ids[:40])).state_dict()

    with pytest.raises(ValueError, match="same dataset, selection and order"):
        RawLoader(dataset.search(ids=ids[40:80])).load_state_dict(state)


def test_a_dataset_is_no_selection(root):
    with pytest.raises(TypeError, match=r"not a Dataset: pass `dataset.search\(\)`"):
        RawLoader(rc.open(root))


def test_a_state_of_another_order_is_refused(selection):
    state = RawLoader(selection, seed=1).state_dict()

    with pytest.raises(ValueError, match="saved with seed=1, this loader has seed=2"):
        RawLoader(selection, seed=2).load_state_dict(state)


def test_without_shuffling_samples_come_in_the_order_of_the_selection(selection, truth):
    batches = epoch_of(RawLoader(selection, batch_size=32, shuffle=False))

    assert np.array_equal(indices(batches), np.arange(NUM_PATCHES))
    check_pixels(batches, truth)


@pytest.mark.parametrize("form", ["shards", "zarr"])
def test_a_part_of_the_dataset_is_streamed_exactly(root, truth, form):
    dataset = rc.open(root)
    part = dataset.search(split="train")

    batches = epoch_of(RawLoader(part, batch_size=7, form=form))

    assert np.array_equal(np.sort(indices(batches)), np.arange(len(part)))
    whole = {patch_id: i for i, patch_id in enumerate(dataset.search().patch_ids)}
    places = np.array([whole[patch_id] for patch_id in part.patch_ids])
    check_pixels([{**b, "index": places[b["index"]]} for b in batches], truth)


def test_the_zarr_form_gives_the_same_batches(selection):
    shards = epoch_of(RawLoader(selection, batch_size=32, seed=2))

    same(epoch_of(RawLoader(selection, batch_size=32, seed=2, form="zarr")), shards)


@pytest.mark.slow
def test_a_tar_of_another_writer_is_read_all_the_same(root, truth, tmp_path):
    import hashlib
    import io
    import json
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq
    import xxhash

    copy = tmp_path / "root"
    shutil.copytree(root, copy)
    listing = pq.read_table(copy / "objects.parquet").to_pylist()
    for entry in listing:
        if not entry["path"].endswith(".tar"):
            continue
        path = copy / entry["path"]
        modality = path.parent.name
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as out:
            for patch_id, payload, text in tar.iter_samples(REBEN.modality(modality), path.read_bytes()):
                for name, data in (
                    (f"{patch_id}.{modality}.safetensors", payload),
                    (f"{patch_id}.json", json.dumps(text).encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size, info.mtime = len(data), 0.5
                    out.addfile(info, io.BytesIO(data))
        path.write_bytes(buffer.getvalue())
        entry["bytes"], entry["xxh3"] = len(buffer.getvalue()), xxhash.xxh3_64_intdigest(buffer.getvalue())
    schema = pq.read_schema(copy / "objects.parquet")
    pq.write_table(pa.Table.from_pylist(listing, schema=schema), copy / "objects.parquet")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["objects_sha256"] = hashlib.sha256((copy / "objects.parquet").read_bytes()).hexdigest()
    (copy / "manifest.json").write_bytes(Manifest(manifest).to_bytes())

    batches = epoch_of(RawLoader(rc.open(copy).search(), batch_size=32))

    check_pixels(batches, truth)


# -- how long a batch stays -------------------------------------------------------------------------


def test_a_batch_that_is_held_is_never_overwritten(selection, truth):
    held = [batch for _ in range(3) for batch in RawLoader(selection, batch_size=16)]

    check_pixels(held, truth)


def test_a_view_keeps_its_batch_alone_and_the_rest_is_reused(selection, truth):
    loader = RawLoader(selection, batch_size=16)
    batches = iter(loader)
    view = next(batches)["s2_10m"][3:5, 1]
    copy = view.copy()

    places = {batch["s2_10m"].__array_interface__["data"][0] for _ in range(3) for batch in loader}
    batches.close()

    np.testing.assert_array_equal(view, copy)
    assert len(places) <= 8, "buffers of batches that nobody holds are used again"


# -- ending -----------------------------------------------------------------------------------------


def threads():
    # Not those of `ModelInput`, which live as long as the process.
    names = ("reben-fetch", "reben-gather")
    return [t for t in threading.enumerate() if t.name.startswith(names)]


def test_leaving_the_loop_stops_every_thread(selection):
    for _batch in RawLoader(selection, batch_size=8):
        assert threads()
        break
    del _batch
    gc.collect()

    assert not threads()


def test_an_interrupted_loop_leaves_no_thread_and_no_part_of_a_file(s3_root, tmp_path):
    loader = RawLoader(rc.open(*s3_root).search(), batch_size=8, cache_dir=tmp_path / "cache")

    def interrupted():
        for _ in loader:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    gc.collect()

    assert not threads()
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.slow
def test_an_error_ends_the_epoch_and_the_threads(root, tmp_path):
    copy = tmp_path / "root"
    shutil.copytree(root, copy)
    victim = sorted(copy.glob("shards/*/s1/*.tar"))[0]
    victim.unlink()

    with pytest.raises(NotFoundError, match=r"lost the shard .*tar; run `reben-cloud verify`"):
        epoch_of(RawLoader(rc.open(copy).search()))
    gc.collect()

    assert not threads()


@pytest.mark.parametrize("part", [False, True], ids=["whole shards", "single rows"])
def test_a_flipped_bit_on_disk_is_found_and_named(root, tmp_path, part):
    copy = tmp_path / "root"
    shutil.copytree(root, copy)
    for victim in copy.glob("shards/*/s2/*.tar"):
        data = bytearray(victim.read_bytes())
        for row in range(SHARD_SAMPLES):
            data[min(row * tar.record_bytes(REBEN.modality("s2")) + 90_000, len(data) - 1)] ^= 4
        victim.write_bytes(data)
    selection = rc.open(copy).search()
    if part:
        country = selection.column("reben:country")[0].as_py()
        selection = rc.open(copy).search(country=country)

    with pytest.raises(ChecksumError, match=r"s2-00000\d.tar: .*xxh3 differs"):
        epoch_of(RawLoader(selection))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"modalities": ["s3"]}, "'s3' is not in .*which has s2, s1, map", id="modality"),
        pytest.param({"modalities": "s2"}, r"must be a list of names, such as \['s2'\]", id="one name"),
        pytest.param({"batch_size": 0}, "batch_size must be at least 1", id="batch_size"),
        pytest.param({"lanes": 0}, "lanes must be at least 1", id="lanes"),
        pytest.param({"rank": 1}, "rank must be in", id="rank"),
        pytest.param({"prefetch": -1}, "prefetch must not be negative", id="prefetch"),
        pytest.param({"form": "lance"}, "form must be", id="form"),
        pytest.param({"cache_bytes": 5}, "cache_dir, which is not given", id="cache"),
        pytest.param({"gather_threads": 0}, "at least 1", id="threads"),
        pytest.param(
            {"batch_size": 10**9, "world_size": 2},
            r"takes .* TB per batch.*this machine has .* GB",
            id="memory",
        ),
    ],
)
def test_wrong_arguments_are_refused_when_the_loader_is_made(selection, options, message):
    with pytest.raises(ValueError, match=message):
        RawLoader(selection, **options)


def test_a_batch_larger_than_the_epoch_is_the_epoch(selection):
    (everything,) = epoch_of(RawLoader(selection, batch_size=10**9, seed=1))

    assert np.array_equal(np.sort(everything["index"]), np.arange(len(selection)))
    assert everything["valid"].all()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        pytest.param(
            {"bbox": (-120.0, 30.0, -119.0, 31.0)},
            r"fits bbox=\(-120.0, 30.0, -119.0, 31.0\): all patches are within -?\d.*west,south,east,north\)$",
            id="alone",
        ),
        pytest.param(
            {"bbox": (30.0, 2.0, 70.0, 31.0)},
            r"longitude comes first: did you mean 2,30,31,70\?$",
            id="latitude first",
        ),
        pytest.param(
            {"country": "Kosovo", "datetime": "2001", "split": "train"},
            r"fits datetime='2001', and none country='Kosovo'$",
            id="two of three",
        ),
        pytest.param(
            {"labels": iter(["Pastures"]), "labels_all": ["Marine waters", "Agro-forestry areas"]},
            "fits labels_all=",
            id="an iterator beside it",
        ),
        pytest.param(
            {"snow": True, "recommended": True, "limit": 5, "sortby": "id"},
            r"fits snow=True and recommended=True together; without snow=True there are \d+, without recommended=True",
            id="only together",
        ),
        pytest.param({"ids": []}, r"fits ids=\[\]$", id="ids"),
    ],
)
def test_an_empty_selection_is_refused_with_what_left_nothing(root, query, message):
    nowhere = rc.open(root).search(**query)

    assert len(nowhere) == 0
    with pytest.raises(NotFoundError, match=f"nothing to stream: no patch of .*{message}"):
        RawLoader(nowhere)


def test_a_loader_that_would_drop_every_batch_is_refused(selection):
    with pytest.raises(NotFoundError, match="150 patches do not fill a batch of 160"):
        RawLoader(selection, batch_size=80, world_size=2, drop_last=True)


def test_rows_taken_by_hand_may_be_none_too(selection):
    nothing = type(selection)(selection.dataset, selection.table, selection.rows[:0])

    with pytest.raises(NotFoundError, match="nothing to stream: the selection is empty"):
        RawLoader(nothing)


# -- what is read ------------------------------------------------------------------------------------


def test_rows_are_read_together_when_a_gap_costs_less_than_a_request():
    assert plan_ranges(np.array([3, 4, 9, 200]), S2, 256) == [(3, 5), (9, 10), (200, 201)]
    assert plan_ranges(np.array([3, 5]), S2, 256) == [(3, 6)]
    assert plan_ranges(np.array([3, 9]), MAP, 256) == [(3, 10)]
    assert plan_ranges(np.arange(256), S2, 256) is None
    assert plan_ranges(np.arange(0, 256, 2), S2, 256) is None
    assert plan_ranges(np.arange(100), S2, 256) == [(0, 100)]
    assert plan_ranges(np.arange(100), S2, 256, uses=4) is None


@pytest.mark.parametrize("modality", REBEN.modalities, ids=lambda m: m.name)
def test_no_plan_reads_more_than_the_whole_shard(modality):
    rng = np.random.default_rng(0)
    for share in (0.01, 0.05, 0.2, 0.5, 0.9):
        rows = np.flatnonzero(rng.random(256) < share)
        if rows.size:
            ranges = plan_ranges(rows, modality, 256) or [(0, 256)]
            covered = sum(stop - start for start, stop in ranges)
            assert covered <= 256
            assert all(any(start <= row < stop for start, stop in ranges) for row in rows)


@pytest.fixture(scope="session")
def s3_root(s3_server, root):
    """(url, storage options) of the root in a bucket that lives as long as the session."""
    from tests.conftest import empty_bucket

    client, name = s3_server.client(), f"reben-stream-{uuid.uuid4().hex[:16]}"
    client.create_bucket(Bucket=name)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), name, f"r/{path.relative_to(root)}")
    yield f"s3://{name}/r", s3_server.storage_options
    empty_bucket(client, name)
    client.delete_bucket(Bucket=name)


@pytest.mark.s3
def test_from_s3_the_batches_are_those_of_the_folder(s3_root, selection):
    remote = rc.open(*s3_root).search()

    loader = RawLoader(remote, batch_size=32)

    same(epoch_of(loader), epoch_of(RawLoader(selection, batch_size=32)))
    # A shard on a cut between lanes is read by both, by range or whole; nothing else is read twice.
    shards = sum(size for path, size in rc.open(*s3_root).store.list("shards"))
    assert 0.95 * shards < loader.stats().bytes_read < 1.5 * shards


def _size_of(modality):
    return tar.shard_bytes(REBEN.modality(modality), SHARD_SAMPLES)


@pytest.mark.s3
def test_a_sparse_selection_reads_little_more_than_itself(s3_root, selection, truth):
    ids = selection.patch_ids[::25]
    some = rc.open(*s3_root).search()
    part = type(some)(some.dataset, some.table, some.rows[::25])

    loader = RawLoader(part, batch_size=4)
    batches = epoch_of(loader)

    check_pixels([{**b, "index": b["index"] * 25} for b in batches], truth)
    assert loader.stats().bytes_read < 1.3 * len(ids) * 305_056


@pytest.mark.s3
def test_the_cache_serves_later_epochs_and_damaged_files_are_fetched_again(s3_root, tmp_path, fault_proxy):
    url, options = s3_root
    remote = rc.open(url, {**options, "endpoint_url": fault_proxy.endpoint}).search()
    first = RawLoader(remote, batch_size=32, cache_dir=tmp_path)
    batches = epoch_of(first)
    num_requests = fault_proxy.num_requests(".tar")
    second = RawLoader(remote, batch_size=32, cache_dir=tmp_path)

    same(epoch_of(second), batches)

    assert second.stats().cache_hits > 0
    assert fault_proxy.num_requests(".tar") == num_requests > 0
    damaged = sorted(tmp_path.glob("*-s2-*.tar"))[0]
    data = damaged.read_bytes()
    middle = len(data) // 2  # its end is padding, which is zero anyway
    damaged.write_bytes(data[:middle] + bytes(5000) + data[middle + 5000 :])
    cut = sorted(tmp_path.glob("*-s1-*.tar"))[0]
    cut.write_bytes(cut.read_bytes()[:5000])
    third = RawLoader(remote, batch_size=32, cache_dir=tmp_path)

    same(epoch_of(third), batches)

    assert fault_proxy.num_requests(".tar") == num_requests + 2


@pytest.mark.s3
def test_a_small_cache_is_kept_within_its_budget(s3_root, tmp_path, selection):
    budget = 3 * _size_of("s2")
    loader = RawLoader(rc.open(*s3_root).search(), batch_size=32, cache_dir=tmp_path, cache_bytes=budget)

    same(epoch_of(loader), epoch_of(RawLoader(selection, batch_size=32)))

    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= budget + 8 * 3 * _size_of("s2")


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("part", [1, 7], ids=["whole shards", "ranges"])
def test_an_epoch_through_faults_is_the_undisturbed_epoch(s3_root, fault_proxy, part, monkeypatch):
    from reben_cloud import store
    from tests.faultproxy import RandomRule

    monkeypatch.setattr(store.objects, "BUDGET", store.Budget(silence_s=2))  # a stall is found out sooner
    url, options = s3_root
    calm = rc.open(url, options).search()
    calm = type(calm)(calm.dataset, calm.table, calm.rows[::part])
    expected = epoch_of(RawLoader(calm, batch_size=16))
    stormy = rc.open(url, {**options, "endpoint_url": fault_proxy.endpoint}).search()
    stormy = type(stormy)(stormy.dataset, stormy.table, stormy.rows[::part])
    loader = RawLoader(stormy, batch_size=16)
    faults = ["503", "delay", "reset-before", "reset-mid", "truncate", "corrupt", "slow"]
    fault_proxy.rules += [
        RandomRule(faults=["stall"], rate=0.1, seed=1, match=".tar", max_times=1, seconds=60),
        RandomRule(faults=faults, rate=0.3, match=".tar", max_times=2, seconds=0.2, bytes_per_s=2e7),
    ]

    same(epoch_of(loader), expected)

    assert fault_proxy.num_faults() > 5
    assert "stall" in [fault for _, fault in fault_proxy.log]


@pytest.mark.s3
def test_damage_that_stays_is_an_error_that_names_the_object(s3_root, fault_proxy):
    url, options = s3_root
    remote = rc.open(url, {**options, "endpoint_url": fault_proxy.endpoint}).search()
    fault_proxy.add("train-s2-000000.tar", "corrupt", times=99)

    with pytest.raises(ChecksumError, match=r"train-s2-000000.tar: .*xxh3 differs"):
        epoch_of(RawLoader(remote, batch_size=16))


# -- the cache alone ----------------------------------------------------------------------------------


def test_two_threads_that_want_one_shard_fetch_it_once(tmp_path):
    fetched = []
    started = threading.Barrier(4)

    def fetch(tries):
        fetched.append(1)
        return memoryview(b"x" * 1000)

    def want():
        cache = ShardCache(tmp_path)
        started.wait()
        path, _ = cache.add("a/b.tar", 7, 1000, fetch, BUDGET)
        assert path.read_bytes() == b"x" * 1000

    wanting = [threading.Thread(target=want) for _ in range(4)]
    for thread in wanting:
        thread.start()
    for thread in wanting:
        thread.join()

    assert fetched == [1]


def test_the_cache_drops_what_was_used_longest_ago(tmp_path):
    cache = ShardCache(tmp_path, 2500)
    for number, name in enumerate("abc"):
        path, _ = cache.add(f"{name}.tar", number, 1000, lambda tries: memoryview(bytes(1000)), BUDGET)
        os.utime(path, (number, number))
        if name == "b":
            cache.find("a.tar", 0)

    assert cache.find("a.tar", 0) is not None
    assert cache.find("b.tar", 1) is None
    assert cache.find("c.tar", 2) is not None


def test_a_shard_larger_than_the_budget_stays_in_memory(tmp_path):
    path, data = ShardCache(tmp_path, 10).add("a.tar", 1, 1000, lambda tries: memoryview(bytes(1000)), BUDGET)

    assert path is None
    assert data.nbytes == 1000
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    import fcntl

    (tmp_path / "dead.tar.part").write_bytes(b"half")
    with (tmp_path / "alive.tar.part").open("wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)

        ShardCache(tmp_path)

        assert [p.name for p in tmp_path.iterdir()] == ["alive.tar.part"]


def test_a_cache_that_cannot_be_written_says_so(tmp_path):
    def fetch(tries):
        raise StorageError("the store is gone")

    with pytest.raises(StorageError, match="the store is gone"):
        ShardCache(tmp_path).add("a.tar", 1, 1000, fetch, BUDGET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_who_waits_for_a_process_that_gets_on_waits_for_as_long_as_it_takes(tmp_path):
    budget = replace(BUDGET, seconds=2.0)
    fetched, held = [], threading.Event()

    def slow(tries):
        held.set()
        for _ in range(30):  # longer than a wait may take
            time.sleep(0.1)
            tries.progress()
        return memoryview(b"x" * 1000)

    first = threading.Thread(target=lambda: ShardCache(tmp_path).add("a.tar", 1, 1000, slow, budget))
    first.start()
    held.wait()

    path, data = ShardCache(tmp_path).add("a.tar", 1, 1000, fetched.append, budget)
    first.join()

    assert (path.read_bytes(), data, fetched) == (b"x" * 1000, None, [])


def test_who_waits_for_a_process_that_stalls_has_one_budget_for_the_wait_and_the_read(tmp_path):
    budget = replace(BUDGET, seconds=0.4)
    ended, held = threading.Event(), threading.Event()

    def stalled(tries):
        held.set()
        ended.wait()
        return memoryview(b"x" * 1000)

    def read(tries):
        assert not tries.wait()  # another attempt would be more than the budget
        return memoryview(b"y" * 1000)

    first = threading.Thread(target=lambda: ShardCache(tmp_path).add("a.tar", 1, 1000, stalled, budget))
    first.start()
    held.wait()
    start = time.monotonic()

    path, data = ShardCache(tmp_path).add("a.tar", 1, 1000, read, budget)

    assert time.monotonic() - start > 0.4
    assert (path, bytes(data)) == (None, b"y" * 1000)
    ended.set()
    first.join()
    assert ShardCache(tmp_path).path("a.tar", 1).read_bytes() == b"x" * 1000


@pytest.mark.slow
def test_who_gets_the_lock_of_one_that_failed_has_what_is_left_of_the_budget(tmp_path):
    budget = replace(BUDGET, seconds=PATIENT_S)
    ended, held = threading.Event(), threading.Event()

    def fails(tries):
        held.set()
        ended.wait()
        raise StorageError("the store is gone")

    def first_asks():
        with pytest.raises(StorageError, match="is gone"):
            ShardCache(tmp_path).add("a.tar", 1, 1000, fails, budget)

    def read(tries):
        counts_from.append(tries._since)
        return memoryview(b"y" * 1000)

    def end():
        failed_at.append(time.monotonic())
        ended.set()

    counts_from, failed_at = [], []
    first = threading.Thread(target=first_asks)
    first.start()
    held.wait()
    start = time.monotonic()
    threading.Timer(1.5, end).start()

    path, _ = ShardCache(tmp_path).add("a.tar", 1, 1000, read, budget)
    first.join()

    assert path.read_bytes() == b"y" * 1000
    assert start <= counts_from[0] < failed_at[0]  # what was waited is part of it, and no more


# -- the command ------------------------------------------------------------------------------------------


def test_the_command_streams_a_selection_and_sums_up(root):
    import json

    from typer.testing import CliRunner

    from reben_cloud.cli import app

    result = CliRunner().invoke(
        app, ["stream", str(root), "--split", "train", "--modality", "s1", "--epochs", "2", "--json"]
    )

    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    num_train = len(rc.open(root).search(split="train"))
    assert summary["samples"] == 2 * num_train
    assert summary["bytes_delivered"] == 2 * num_train * 2 * 120 * 120 * 4
    assert summary["retries"] == 0


def test_the_same_batches_come_from_an_exported_lmdb(root, selection, tmp_path):
    part = rc.open(root).search(split="train")
    part.export_lmdb(tmp_path / "export")

    exported = rc.open(f"lmdb://{tmp_path / 'export'}").search()

    same(epoch_of(RawLoader(exported, batch_size=32)), epoch_of(RawLoader(part, batch_size=32)))


@pytest.mark.slow
def test_the_command_sums_up_what_was_streamed_when_it_is_stopped(root):
    streaming = subprocess.Popen(
        [sys.executable, "-m", "reben_cloud.cli", "stream", root, "--batch-size", "4", "--epochs", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    live = streaming.stderr.readline()  # it is at work
    streaming.send_signal(signal.SIGINT)
    text, errors = streaming.communicate(timeout=PATIENT_S)

    assert live.startswith("epoch ")
    assert streaming.returncode == 130
    assert "stopped; so far:" in errors
    assert re.match(r"[\d,]+ samples in [\d,]+ batches", text)
