"""`layout="records"`: payloads as bytes, whatever they are read from, and the arrays and images made of them."""

# ruff: noqa: F811 - fixtures are imported from the tests of the raw loader

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reben_cloud as rc
from reben_cloud.bigearthnet.bands import BAND_SETS
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.errors import ChecksumError
from reben_cloud.files.local import LocalFile
from reben_cloud.formats import tar
from reben_cloud.hosted.publish import index_hosted
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from reben_cloud.stream.gather import Slot, copies_of, samples_of
from reben_cloud.stream.payloads import InFile
from tests.layers.data import ELEVATION, elevations
from tests.test_invented_root import REEFS, Noise, metadata_of, schemas
from tests.test_stream import NUM_PATCHES, epoch_of, root, same, selection, truth  # noqa: F401
from tests.test_stream_memory import flip, memory_copy, own_root, remote  # noqa: F401

torch = pytest.importorskip("torch")

from reben_cloud.torch import ModelInput, RenderRGB, StreamLoader, unpack  # noqa: E402

MODALITIES = ("s2", "s1", "map")


@pytest.fixture(scope="module")
def payloads(root):
    """Modality -> payload of every patch, in the order of the whole selection, read with `tarfile`."""
    ids = {patch_id: position for position, patch_id in enumerate(rc.open(root).search().patch_ids)}
    found = {name: [b""] * len(ids) for name in MODALITIES}
    for path in sorted(root.glob("shards/*/*/*.tar")):
        name = path.parent.name
        for patch_id, payload, _ in tar.iter_samples(REBEN.modality(name), path.read_bytes()):
            found[name][ids[patch_id]] = bytes(payload)
    return found


def check_payloads(batches, payloads, index=None):
    seen = []
    for batch in batches:
        assert not batch.keys() & {"s2_10m", "s2_20m", "s2_60m"}
        for row in np.flatnonzero(batch["valid"]).tolist():
            seen.append(int(batch["index"][row]))
            position = seen[-1] if index is None else index[seen[-1]]
            for name in MODALITIES:
                assert bytes(batch[name][row]) == payloads[name][position]
        for name in MODALITIES:
            assert not batch[name][~batch["valid"]].any(), "rows of padding are zeros"
    return seen


def plain(batch):
    """A batch of tensors as arrays, of which all can be compared."""
    return {name: values.numpy() for name, values in batch.items()}


def test_shapes_and_dtypes_are_the_documented_ones(selection):
    batch = next(iter(RawLoader(selection, batch_size=5, layout="records")))

    assert {name: (a.dtype.name, a.shape) for name, a in batch.items()} == {
        "s2": ("uint8", (5, 160_832)),
        "s1": ("uint8", (5, 115_344)),
        "map": ("uint8", (5, 28_880)),
        "labels": ("float32", (5, 19)),
        "index": ("int64", (5,)),
        "valid": ("bool", (5,)),
    }
    assert all(a.flags.c_contiguous for a in batch.values())


@pytest.mark.parametrize("where", ["folder", "zarr", "remote", "ranges", "cache", "lmdb", "references"])
def test_every_reader_delivers_the_payloads_as_they_were_written(root, remote, payloads, tmp_path, where):
    chosen, options = (rc.open(root).search() if where in ("folder", "zarr") else remote), {}
    index = None
    if where == "zarr":
        options["form"] = "zarr"
    elif where == "cache":
        options["cache_dir"] = tmp_path
    elif where == "ranges":
        chosen = type(chosen)(chosen.dataset, chosen.table, chosen.rows[::25])
        index = np.arange(0, NUM_PATCHES, 25)
    elif where in ("lmdb", "references"):
        rc.open(root).search().export_lmdb(tmp_path / "export")
        place = tmp_path / "export"
        if where == "references":
            index_hosted(place, tmp_path / "references")
            place = tmp_path / "references"
        chosen = rc.open(place).search()
        ids = {patch_id: position for position, patch_id in enumerate(rc.open(root).search().patch_ids)}
        index = [ids[patch_id] for patch_id in chosen.patch_ids]
    loader = RawLoader(chosen, batch_size=16, layout="records", **options)

    for _ in range(2):
        seen = check_payloads(epoch_of(loader), payloads, index)

        assert sorted(seen) == list(range(len(chosen)))


@pytest.mark.parametrize("world_size", [1, 2])
def test_order_and_state_are_those_of_the_other_layout(selection, world_size):
    options = {"batch_size": 16, "seed": 5, "world_size": world_size, "rank": world_size - 1}
    arrays = RawLoader(selection, **options)
    records = RawLoader(selection, layout="records", **options)
    left, right = iter(arrays), iter(records)
    for _ in range(3):
        one, other = next(left), next(right)
        np.testing.assert_array_equal(one["index"], other["index"])
        assert arrays.state_dict() == records.state_dict()

    resumed = RawLoader(selection, layout="records", **options)
    resumed.load_state_dict(arrays.state_dict())

    rest = epoch_of(resumed)
    expected = [{n: a.copy() for n, a in batch.items()} for batch in left]
    same([plain(unpack({n: torch.from_numpy(a) for n, a in batch.items()})) for batch in rest], expected)


def test_a_cache_filled_in_one_layout_serves_the_other(remote, tmp_path):
    epoch_of(RawLoader(remote, batch_size=16, cache_dir=tmp_path))
    loader = RawLoader(remote, batch_size=16, cache_dir=tmp_path, layout="records")

    epoch_of(loader)

    assert loader.stats().cache_hits > 0
    assert not loader.stats().requests


def test_layers_and_their_presence_are_in_either_layout(root, tmp_path):
    ds = rc.open(root)
    covered = ds.selection.patch_ids[::3]
    layer = rc.write_layer(
        tmp_path / "elevation",
        ds,
        name="elevation",
        tensors=ELEVATION,
        patches=elevations(covered),
        title="Elevation",
        provenance={"source": "a formula"},
    )
    attached = rc.open(root, layers=[layer.url])
    modalities = ("map", "elevation")
    options = {"batch_size": 16, "modalities": modalities}

    records = list(StreamLoader(attached.search(), layout="records", **options))
    arrays = list(StreamLoader(attached.search(), **options))

    assert records[0]["elevation"].shape == (16, attached.schema.modality("elevation").payload_bytes)
    assert records[0]["elevation_present"].any()
    assert not records[0]["elevation_present"].all()
    same([plain(unpack(batch, attached.schema)) for batch in records], [plain(batch) for batch in arrays])


def test_a_changed_payload_is_named(own_root):
    loader = RawLoader(rc.open(own_root).search(), batch_size=4, lanes=1, layout="records")
    epoch_of(loader)
    for path in own_root.glob("shards/*/s2/*.tar"):
        flip(path)

    with pytest.raises(ChecksumError, match=r"train-s2-00000\d\.tar: the payload in row .*xxh3 differs"):
        epoch_of(loader)


@pytest.mark.parametrize("layout", ["arrays", "records"])
def test_a_header_that_changed_is_seen_where_no_checksum_is_known(tmp_path, payloads, layout):
    """An LMDB of rico-hdl has none: the header of a record is then all there is to compare."""
    modality, (right, other, *_) = REBEN.modality("s1"), payloads["s1"]
    wrong = other[:20] + b"#" + other[21:]
    (tmp_path / "file").write_bytes(right + wrong)
    arrays = {name: np.empty((2, *s.shape), s.dtype) for name, s in samples_of(modality, layout).items()}
    rows = Slot(arrays).rows("s1", copies_of(modality, layout))
    found = InFile(
        file=LocalFile(tmp_path / "file"),
        starts=[0, len(right)],
        nbytes=len(right),
        header=modality.payload_header,
        checksums=None,
        damage=lambda number, cause: f"payload {number}: {cause}",
        count=lambda *_: None,
    )

    found.fill([0], rows, [1])

    expected = modality.stack(right)["s1"] if layout == "arrays" else np.frombuffer(right, np.uint8)
    np.testing.assert_array_equal(arrays["s1"][1], expected)
    assert bytes(found.read(0)) == right
    with pytest.raises(ChecksumError, match="payload 1"):
        found.fill([0, 1], rows, [0, 1])


# -- arrays out of records ---------------------------------------------------------------------------


@given(schema=st.one_of(st.just(REEFS), st.just(REBEN), schemas()), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_unpacked_records_are_the_arrays_of_any_schema_bit_for_bit(schema, seed):
    rng = np.random.default_rng(seed)
    batch, expected = {"labels": torch.zeros(3, 1), "texts": ["", "a", "b"]}, {}
    for modality in schema.modalities:
        (copy,) = copies_of(modality, "records")
        assert samples_of(modality, "records") == {copy.array: ((copy.nbytes,), np.uint8)}
        tensors = [
            {
                t.name: np.frombuffer(
                    rng.bytes(t.nbytes)
                    if t.dtype != "bool"
                    else bytes(rng.integers(0, 2, t.nbytes, np.uint8)),
                    t.storage,
                ).reshape(t.shape)
                for t in modality.tensors
            }
            for _ in range(3)
        ]
        rows = [np.frombuffer(modality.encode(one), np.uint8) for one in tensors]
        batch[modality.name] = torch.from_numpy(np.stack(rows))
        for name in modality.samples:
            expected[name] = np.stack([modality.stack(row.tobytes())[name] for row in rows])

    found = unpack(batch, schema)

    assert found.keys() == expected.keys() | {"labels", "texts"}
    for name, values in expected.items():
        got = found[name].numpy()
        assert (got.dtype, got.shape) == (values.dtype, values.shape)
        assert got.tobytes() == values.tobytes(), name


def test_what_are_neighbours_in_a_payload_are_views(selection):
    batch = next(iter(StreamLoader(selection, batch_size=4, layout="records")))
    found = unpack(batch)

    address = found["map"].untyped_storage().data_ptr()
    assert address == batch["map"].untyped_storage().data_ptr()
    assert unpack(found).keys() == found.keys()
    for name, values in unpack(found).items():
        assert values is found[name], "a batch without records is as it was"


@pytest.fixture(scope="module")
def both(root):
    options = {"batch_size": 70, "seed": 2}
    selection = rc.open(root).search()
    return [next(iter(StreamLoader(selection, layout=kind, **options))) for kind in ("arrays", "records")]


@pytest.mark.parametrize("bands", sorted(BAND_SETS))
@pytest.mark.parametrize("size", [120, 128])
def test_the_image_is_the_same_from_either_layout(both, bands, size):
    arrays, records = both
    model_input = ModelInput(bands, size=size)

    assert torch.equal(model_input(records), model_input(arrays))


def test_pictures_are_the_same_from_either_layout(both):
    arrays, records = both

    assert torch.equal(RenderRGB()(records), RenderRGB()(arrays))


def test_a_batch_of_records_without_the_modality_is_refused(selection):
    batch = next(iter(StreamLoader(selection, batch_size=4, modalities=["s1"], layout="records")))

    with pytest.raises(
        ValueError, match=r"the batch has no s2_10m, which the bands .* need; it has s1, labels"
    ):
        ModelInput("RGB")(batch)


def test_wrong_layouts_are_refused(selection):
    with pytest.raises(ValueError, match="layout must be 'arrays' or 'records', got 'rows'"):
        RawLoader(selection, layout="rows")


# -- what it costs -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["arrays", "records"])
def test_the_python_around_a_sample_takes_microseconds(small_payloads, layout):
    """Payloads of 92 bytes: nothing is left to measure but what a sample costs whatever is in it."""
    loader = StreamLoader(small_payloads.search(), batch_size=64, prefetch=32, layout=layout)
    costs = []
    for _ in range(8):
        begin = time.process_time()
        count = sum(len(batch["index"]) for batch in loader)
        costs.append((time.process_time() - begin) / count)

    # 6 to 8 us, where a step takes 31 ns: what a processor is slower, it is for both.
    assert min(costs) < 640 * _step_s(), "processor seconds per sample"


def _step_s():
    """Processor seconds of one of the simplest steps of Python."""
    costs = []
    for _ in range(20):
        begin, total = time.thread_time(), 0
        for number in range(100_000):
            total += number % 7
        costs.append((time.thread_time() - begin) / 100_000)
    return min(costs)


@pytest.fixture(scope="module")
def small_payloads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "root"
    source = Noise(schema=REEFS.only(["words"]))
    build(make_plan(source, metadata_of(4096), open_store(folder)))
    return rc.open(folder)
