"""What a result depends on is compared before it is used: every byte of a root's tables, and every place they name."""

import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reben_cloud as rc
from reben_cloud.bigearthnet.official import describe
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.build.publish import publish_metadata
from reben_cloud.errors import ChecksumError, NotFoundError, RebenError
from reben_cloud.formats import parquet
from reben_cloud.formats.zarr import INDEX_BYTES
from reben_cloud.root import patches_file
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.manifest import Manifest
from reben_cloud.root.patches import patches_table
from reben_cloud.root.patches_file import write_patches
from reben_cloud.root.placement import check_places
from reben_cloud.sources.recognise import open_source
from reben_cloud.sources.synthetic import synthetic_metadata
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from tests.roots import synthetic_root

NUM_PATCHES = 40
PACKAGE = Path(__file__).parent.parent / "reben_cloud"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "root"
    synthetic_root(folder, NUM_PATCHES)
    return folder


@pytest.fixture
def root(built, tmp_path):
    return shutil.copytree(built, tmp_path / "root")


@pytest.fixture
def catalog(monkeypatch):
    """The store of a root of metadata in memory, whose table has several row groups."""
    monkeypatch.setattr(patches_file, "ROW_GROUP_ROWS", 64)
    store = open_store("memory://integrity")
    for path, _ in list(store.list()):
        store.delete(path)
    rows = synthetic_metadata(150)
    publish_metadata(describe(rows), REBEN, store, given=rows.column_names)
    return store


def everything(url):
    return rc.open(url).search().to_arrow()


def flipped(data, position):
    return bytes(data[:position]) + bytes([data[position] ^ 1]) + bytes(data[position + 1 :])


def manifest_of(root):
    return json.loads((root / "manifest.json").read_text())


def without_seal(store):
    """Make an older root of it."""
    manifest = json.loads(bytes(store.get("manifest.json")))
    del manifest["patches_parquet"]
    store.put("manifest.json", Manifest(manifest).to_bytes())


def chunks_of(data):
    meta = pq.read_metadata(io.BytesIO(data))
    assert meta.num_row_groups == 3
    for group in range(meta.num_row_groups):
        for leaf in range(meta.num_columns):
            yield meta.row_group(group).column(leaf)


def positions_everywhere(data):
    """Bytes of every page header, page and dictionary, and of the footer."""
    rng = np.random.default_rng(0)
    for chunk in chunks_of(data):
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        stop = start + chunk.total_compressed_size
        yield from {start, start + 3, chunk.data_page_offset, chunk.data_page_offset + 2, stop - 1}
        yield int(rng.integers(start, stop))
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    yield from rng.integers(footer, len(data), 60).tolist()
    yield from range(len(data) - 8, len(data))


# -- patches.parquet ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("age", ["sealed", "older"])
def test_no_flipped_bit_of_the_table_gets_through(catalog, age):
    data = bytes(catalog.get("patches.parquet"))
    if age == "older":
        without_seal(catalog)
    expected = everything(catalog.url)
    positions = sorted(set(positions_everywhere(data)))[:: 1 if age == "sealed" else 7]
    assert len(positions) > (500 if age == "sealed" else 70)

    for position in positions:
        catalog.put("patches.parquet", flipped(data, position))
        with pytest.raises(ChecksumError, match=re.escape(f"{catalog.url}/patches.parquet")):
            everything(catalog.url)

    catalog.put("patches.parquet", data)
    assert everything(catalog.url) == expected


@pytest.mark.parametrize("change", ["cut", "another", "empty"])
def test_a_table_of_another_size_is_refused(catalog, change):
    data = bytes(catalog.get("patches.parquet"))
    other = {"cut": data[: len(data) // 2], "empty": b""}
    other["another"] = write_patches(patches_table(describe(synthetic_metadata(120)), REBEN), REBEN)
    catalog.put("patches.parquet", other[change])

    with pytest.raises(ChecksumError, match=re.escape(f"{catalog.url}/patches.parquet")):
        everything(catalog.url)


def test_other_readers_find_checksums_in_every_page(catalog):
    """Arrow compares those of dictionaries and data; nothing of a page's header, hence ours of whole chunks."""
    data = bytes(catalog.get("patches.parquet"))
    seen = set()

    for chunk in chunks_of(data):
        ends = {"data": chunk.dictionary_page_offset or chunk.data_page_offset}
        ends["data"] += chunk.total_compressed_size
        if chunk.dictionary_page_offset:
            ends["dictionary"] = chunk.data_page_offset
        for kind, end in ends.items():
            seen.add(kind)
            damaged = pq.ParquetFile(io.BytesIO(flipped(data, end - 1)), page_checksum_verification=True)
            with pytest.raises(OSError, match="CRC"):
                damaged.read()
    assert seen == {"data", "dictionary"}


def test_a_sealed_table_is_a_parquet_file_like_any_other():
    table = patches_table(describe(synthetic_metadata(30)), REBEN)

    read = pq.read_table(io.BytesIO(write_patches(table, REBEN)))

    assert read.equals(table.cast(read.schema.remove_metadata()))
    assert {b"geo", b"stac-geoparquet"} <= read.schema.metadata.keys()


def test_a_large_table_of_an_older_remote_root_is_read_with_a_warning(catalog, monkeypatch, caplog):
    expected = everything(catalog.url)
    without_seal(catalog)
    monkeypatch.setattr("reben_cloud.root.documents.WHOLE_BYTES", 1000)

    dataset = rc.open(catalog.url)

    assert dataset.search().to_arrow() == dataset.search().to_arrow() == expected
    assert [r.message for r in caplog.records if "damage may go unnoticed" in r.message] == [
        caplog.messages[0]
    ]
    assert len(caplog.records) == 1


def test_a_search_reads_no_more_of_the_table_than_it_needs(catalog, monkeypatch):
    asked = []
    store = type(catalog)
    get_ranges = store.get_ranges

    def counting(self, path, starts, lengths):
        asked.append((path, sum(lengths)))
        return get_ranges(self, path, starts, lengths)

    monkeypatch.setattr(store, "get_ranges", counting)
    monkeypatch.setattr(parquet, "_GAP_BYTES", 0)
    monkeypatch.setattr(store, "head", lambda *_: pytest.fail("the manifest knows the size"))

    found = rc.open(catalog.url).search(split="train")

    seal = rc.open(catalog.url).manifest["patches_parquet"]
    assert len(found)
    assert asked[0] == ("patches.parquet", seal["footer_nbytes"])
    assert sum(nbytes for _, nbytes in asked[1:]) < seal["nbytes"] / 10


# -- places ------------------------------------------------------------------------------------------

MANIFEST = Manifest.of(
    created_from="synthetic patches",
    schema=REBEN,
    metadata_columns=["patch_id"],
    num_patches=7,
    products=["a"],
    countries=[],
    fingerprint="0" * 16,
    group_sizes={"train": 6, "test": 1},
    shard_samples=4,
    zarr_shard_patches=64,
)


@pytest.mark.parametrize(
    ("group", "shard", "row"),
    [("train", 0, 4), ("train", 1, 2), ("train", 2, 0), ("train", -1, 0), ("train", 0, -1), ("other", 0, 0)],
)
def test_a_place_outside_of_the_shards_is_refused(group, shard, row):
    good = {"names": ["train", "test"], "codes": np.array([0, 1, 0]), "shards": np.array([1, 0, 0])}
    check_places(MANIFEST, **good, rows=np.array([1, 0, 3]), name="t")
    none = np.array([], np.int64)
    check_places(MANIFEST, names=[], codes=none, shards=none, rows=none, name="t")

    with pytest.raises(ChecksumError, match=f"t: names row {row} of shard {shard} of group '{group}'"):
        check_places(
            MANIFEST,
            names=["test", group],
            codes=np.array([0, 1]),
            shards=np.array([0, shard]),
            rows=np.array([0, row]),
            name="t",
        )


def rewrite(root, column, value):
    """Another value in the last row of the table, with checksums that are right."""
    table = pq.read_table(root / "patches.parquet")
    values = table.column(column).to_pylist()
    values[-1] = value
    number = table.column_names.index(column)
    table = table.set_column(number, column, pa.array(values, table.schema.field(column).type))
    data = write_patches(table, REBEN)
    (root / "patches.parquet").write_bytes(data)
    manifest = manifest_of(root)
    manifest["patches_parquet"] = parquet.Seal.of(io.BytesIO(data)).to_json()
    (root / "manifest.json").write_bytes(Manifest(manifest).to_bytes())


@pytest.mark.parametrize("column", ["reben:shard_row", "reben:shard"])
@pytest.mark.parametrize("value", [-1, 2**31 - 1])
def test_no_address_is_made_of_a_place_that_is_not_there(root, tmp_path, column, value):
    rewrite(root, column, value)
    selection = rc.open(root).search()

    with pytest.raises(ChecksumError, match=re.escape("patches.parquet: names row")):
        RawLoader(selection)
    with pytest.raises(ChecksumError, match=re.escape("patches.parquet: names row")):
        selection.export_lmdb(tmp_path / "out")
    source, official = open_source(root)
    with pytest.raises(ChecksumError, match=re.escape("patches.parquet: names row")):
        build(make_plan(source, official, open_store(tmp_path / "copy")))


@pytest.mark.slow
@pytest.mark.parametrize("value", [-1, 3, 2**31 - 1])
def test_a_zarr_row_that_holds_another_patch_is_refused(root, value):
    rewrite(root, "reben:zarr_row", value)
    selection = rc.open(root).search()

    with pytest.raises(ChecksumError, match=f"in row {value} of its product's Zarr store"):
        selection.dataset.open_patch(selection.patch_ids[-1])
    with pytest.raises(ChecksumError, match=f"in row {value} of its product's Zarr store"):
        selection.to_xarray()
    if value != 3:
        with pytest.raises(ChecksumError, match="of Zarr stores, which have no such"):
            RawLoader(selection, form="zarr")


# -- Zarr stores -------------------------------------------------------------------------------------


def a_patch(root):
    dataset = rc.open(root)
    patch_id = dataset.search().patch_ids[0]
    return dataset, patch_id, root / "zarr" / f"{patch_id[:-6]}.zarr"


@pytest.mark.parametrize("what", ["s2_10m/c/0/0/0/0", "s1/c/0/0/0/0", "reference_map/c/0/0/0", "x0/c/0"])
def test_a_zarr_object_that_is_gone_is_no_fill_value(root, what):
    dataset, patch_id, zarr = a_patch(root)
    (zarr / what).unlink()

    with pytest.raises(NotFoundError, match=re.escape(f"has lost {what}")):
        dataset.open_patch(patch_id).load()


@pytest.mark.parametrize("what", ["zarr.json", "patch_id/c/0", "labels/c/0/0", "x0/c/0"])
def test_damaged_metadata_of_a_zarr_store_are_named(root, what):
    dataset, patch_id, zarr = a_patch(root)
    file = zarr / what
    file.write_bytes(flipped(file.read_bytes(), file.stat().st_size // 2))

    with pytest.raises(
        ChecksumError, match=re.escape(f"{zarr.name}/{what} is not the object that was written")
    ):
        dataset.open_patch(patch_id).load()


def views_of(dataset, patch_id):
    """Each way to look at the pixels of a patch, all of which are in the product's first Zarr shards."""
    product = patch_id[:-6]
    array = dataset.open_zarr(product)["s2_10m"]
    return {
        "open_zarr": lambda: array.load(),
        "a part of open_zarr": lambda: array.isel(patch=0).load(),
        "open_patch": lambda: dataset.open_patch(patch_id).load(),
        "mosaic": lambda: dataset.mosaic(product).load(),
        "to_xarray": lambda: dataset.search(ids=patch_id).to_xarray().load(),
    }


VIEWS = ["open_zarr", "a part of open_zarr", "open_patch", "mosaic", "to_xarray"]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("where", ["chunk", "index", "end"])
def test_damage_within_a_zarr_shard_names_the_object_and_the_way_out(root, view, where):
    dataset, patch_id, zarr = a_patch(root)
    row = dataset.search(ids=patch_id).columns(["reben:zarr_row"]).column(0)[0].as_py()
    assert row == 0
    file = zarr / "s2_10m" / "c" / "0" / "0" / "0" / "0"
    data = file.read_bytes()
    # The first chunk is at the beginning; its place is the first entry of the index.
    at = {"chunk": 40, "index": len(data) - INDEX_BYTES + 2, "end": len(data) - 1}[where]
    read = views_of(dataset, patch_id)[view]
    file.write_bytes(flipped(data, at))

    with pytest.raises(ChecksumError) as raised:
        read()

    part = "patch 0" if where == "chunk" else "index"
    assert re.search(
        rf"{re.escape(zarr.name)}/s2_10m/c/0/0/0/0: {part}: the crc32c checksum does not match.*"
        "; copy the object again",
        str(raised.value),
    )


@pytest.mark.parametrize("view", VIEWS)
def test_a_zarr_shard_that_is_cut_short_is_named(root, view):
    dataset, patch_id, zarr = a_patch(root)
    file = zarr / "s2_10m" / "c" / "0" / "0" / "0" / "0"
    read = views_of(dataset, patch_id)[view]
    file.write_bytes(file.read_bytes()[: INDEX_BYTES // 2])

    with pytest.raises(ChecksumError, match=rf"{re.escape(zarr.name)}/s2_10m/c/0/0/0/0: .* is cut off"):
        read()


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A root of the same patches as `built`, with other pixels: both are sound."""
    folder = tmp_path_factory.mktemp("turned") / "root"
    synthetic_root(folder, NUM_PATCHES, turned=True)
    return folder


def test_the_zarr_shards_of_two_roots_of_the_same_patches_differ_in_size(built, turned):
    # Which is why the size of a shard tells them apart where it is not read whole.
    for file in (built / "zarr").rglob("s2_10m/c/*/*/*/*"):
        other = turned / file.relative_to(built)
        assert file.stat().st_size != other.stat().st_size


@pytest.mark.parametrize("view", VIEWS)
def test_a_sound_zarr_shard_of_another_root_is_refused(root, turned, view):
    dataset, patch_id, zarr = a_patch(root)
    read = views_of(dataset, patch_id)[view]
    place = Path("zarr", zarr.name, "s2_10m/c/0/0/0/0")
    shutil.copy(turned / place, root / place)

    with pytest.raises(ChecksumError, match=re.escape(str(place))):
        read()


@pytest.mark.parametrize("at_once", [1, NUM_PATCHES], ids=["chunk by chunk", "whole"])
def test_sound_zarr_shards_of_another_root_are_not_streamed(root, turned, at_once, monkeypatch):
    if at_once == 1:
        monkeypatch.setattr("reben_cloud.stream.readers.zarr.REQUEST_BYTES", 1)
    shutil.rmtree(root / "zarr")
    shutil.copytree(turned / "zarr", root / "zarr")
    loader = RawLoader(rc.open(root).search(), batch_size=at_once, form="zarr")

    with pytest.raises(ChecksumError, match="s2_10m/c/0/0/0/0"):
        next(iter(loader))


def test_a_mosaic_without_its_zarr_shard_is_an_error(root):
    dataset, patch_id, zarr = a_patch(root)
    (zarr / "s2_10m" / "c" / "0" / "0" / "0" / "0").unlink()

    with pytest.raises(NotFoundError, match=r"has lost zarr/.*\.zarr/s2_10m/c/0/0/0/0"):
        dataset.mosaic(patch_id[:-6]).load()


# -- what is lost, and what came damaged -------------------------------------------------------------


@pytest.mark.parametrize("name", ["patches.parquet", "objects.parquet"])
def test_a_table_that_is_gone_is_named(root, name):
    (root / name).unlink()

    with pytest.raises(NotFoundError, match=re.escape(f"has lost {name}; `reben-cloud verify`")):
        RawLoader(rc.open(root).search())


def test_a_shard_that_goes_away_during_a_run_is_named(root):
    loader = RawLoader(rc.open(root).search(), batch_size=4)
    next(iter(loader))
    shutil.rmtree(root / "shards")

    with pytest.raises(NotFoundError, match="lost"):
        list(loader)


@pytest.mark.s3
@pytest.mark.parametrize("name", ["manifest.json", "objects.parquet", "patches.parquet"])
def test_a_damaged_answer_is_asked_for_again_once(built, s3_bucket, fault_proxy, name):
    store = open_store(s3_bucket.url, s3_bucket.storage_options)
    for path in ("manifest.json", "objects.parquet", "patches.parquet"):
        store.put(path, (built / path).read_bytes())
    options = s3_bucket.through(fault_proxy.endpoint).storage_options

    def read():
        dataset = rc.open(s3_bucket.url, options)
        RawLoader(dataset.search())
        return dataset.search().to_arrow()

    expected = read()
    fault_proxy.add(f"/{name}", "corrupt")
    assert read() == expected
    assert fault_proxy.num_faults() == 1
    fault_proxy.add(f"/{name}", "corrupt", times=9)
    with pytest.raises(RebenError, match=re.escape(f"{s3_bucket.url}/{name}")):
        read()


def test_every_range_of_the_table_is_asked_for_again(catalog, monkeypatch):
    expected = everything(catalog.url)
    store = type(catalog)
    get_ranges, count = store.get_ranges, [0]

    def broken(self, path, starts, lengths):
        count[0] += 1
        found = get_ranges(self, path, starts, lengths)
        return [flipped(part, len(part) // 2) for part in map(bytes, found)] if count[0] % 2 else found

    monkeypatch.setattr(store, "get_ranges", lambda *given: [memoryview(p) for p in broken(*given)])

    assert everything(catalog.url) == expected
    assert count[0] >= 4


# -- exports -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("age", ["sealed", "older"])
def test_the_tables_of_an_export_are_compared(root, tmp_path, age):
    out = tmp_path / "out"
    rc.open(root).search().export_lmdb(out)
    manifest = json.loads((out / "export.json").read_text())
    if age == "older":
        del manifest["patches_parquet"]
        (out / "export.json").write_bytes(ExportManifest(manifest).to_bytes())
    expected = rc.open(out).search().to_arrow()
    for name in ("patches.parquet", "metadata.parquet"):
        data = (out / name).read_bytes()
        for position in (6, len(data) // 2, len(data) - 100, len(data) - 5):
            (out / name).write_bytes(flipped(data, position))
            with pytest.raises(RebenError, match=re.escape(f"{out}/{name}")):
                rc.open(out).search().to_arrow() if name == "patches.parquet" else open_source(out)
        (out / name).write_bytes(data)

    assert rc.open(out).search().to_arrow() == expected


# -- memory ------------------------------------------------------------------------------------------


def test_arrow_is_given_memory_of_its_own():
    data = bytes(range(256)) * 300
    before = pa.total_allocated_bytes()

    copy = parquet.arrow_memory(data)

    assert copy.to_pybytes() == data
    assert parquet.arrow_memory(b"").size == 0
    assert pa.total_allocated_bytes() - before >= len(data)  # a buffer of Python's is not in Arrow's pool


def test_only_one_module_hands_bytes_to_arrow():
    pattern = re.compile(r"py_buffer|PythonFile|pq\.read_table|pq\.ParquetFile|foreign_buffer|pa\.dataset")
    reader = re.compile(r"BufferReader\((?!parquet\.arrow_memory)")
    for file in PACKAGE.rglob("*.py"):
        if file.name != "parquet.py":
            text = file.read_text()
            assert not re.findall(pattern, re.sub(r"\s+", "", text)), file
            assert not re.findall(reader, re.sub(r"\s+", "", text)), file


def test_objects_of_another_root_are_refused(root, tmp_path):
    data = (root / "objects.parquet").read_bytes()
    for position in range(4, len(data), len(data) // 25):
        (root / "objects.parquet").write_bytes(flipped(data, position))
        with pytest.raises(ChecksumError, match=re.escape(f"{root}/objects.parquet is not the one")):
            RawLoader(rc.open(root).search())
    assert hashlib.sha256(data).hexdigest() == manifest_of(root)["objects_sha256"]
