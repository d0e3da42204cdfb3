"""Zarr: the bytes of zarr-python, read by zarr-python, xarray and TensorStore; damage is noticed."""

import asyncio
import json
import warnings

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr as zarr_python
from zarr.codecs import BloscCodec, Crc32cCodec

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import ChecksumError
from reben_cloud.formats import zarr

ARRAYS = {array.name: array for modality in REBEN.modalities for array in zarr.pixel_arrays(modality)}


def encode(array, patches):
    return zarr.encode_shard(ARRAYS[array], patches)


def decode(array, data, **options):
    return zarr.decode_shard(ARRAYS[array], data, **options)


def shard_path(array, number):
    return f"{array}/c/{number}{'/0' * len(ARRAYS[array].shape)}"


def labels(*arrays):
    return zarr.label_coordinates([ARRAYS[name] for name in arrays], REBEN.classes.names)


def pixels(array, count, seed=0):
    spec = ARRAYS[array]
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 10_000, (count, *spec.shape))
    return (
        values.astype(spec.dtype) / spec.dtype.type(7)
        if spec.dtype.kind == "f"
        else values.astype(spec.dtype)
    )


def reference(folder, array, patches):
    """The same array written by zarr-python alone."""
    spec = ARRAYS[array]
    made = zarr_python.create_array(
        str(folder / array),
        shape=patches.shape,
        chunks=(1, *spec.shape),
        shards=(zarr.PATCHES_PER_ZARR_SHARD, *spec.shape),
        dtype=spec.dtype,
        compressors=[
            BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=spec.dtype.itemsize),
            Crc32cCodec(),
        ],
        fill_value=spec.fill_value,
        config={"write_empty_chunks": True},
        zarr_format=3,
    )
    made[...] = patches


@pytest.mark.parametrize(("array", "count"), [*((a, n) for a in ARRAYS for n in (1, 5)), ("s2_60m", 257)])
def test_zarr_shards_have_the_bytes_of_zarr_python(array, count, tmp_path):
    patches = pixels(array, count)
    reference(tmp_path, array, patches)

    for number in range(zarr.num_zarr_shards(count)):
        part = slice(number * zarr.PATCHES_PER_ZARR_SHARD, (number + 1) * zarr.PATCHES_PER_ZARR_SHARD)
        path = tmp_path / shard_path(array, number)
        assert encode(array, patches[part]) == path.read_bytes()


def test_patches_of_zeros_are_written_too(tmp_path):
    patches = np.zeros((3, 2, 20, 20), np.uint16)
    reference(tmp_path, "s2_60m", patches)

    assert encode("s2_60m", patches) == (tmp_path / shard_path("s2_60m", 0)).read_bytes()


@pytest.mark.parametrize("array", list(ARRAYS))
def test_what_is_written_is_read(array):
    patches = pixels(array, 4)
    shard = encode(array, patches)

    np.testing.assert_array_equal(decode(array, shard), patches)
    rows = np.array([3, 0])
    np.testing.assert_array_equal(decode(array, shard, rows=rows), patches[[3, 0]])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A product's store on disk with all five arrays, 259 patches: two Zarr shards each."""
    folder = tmp_path_factory.mktemp("zarr") / "product.zarr"
    arrays = ("s2_60m", "s1")
    count = 259
    values = {name: pixels(name, count) for name in arrays}
    ids = np.array([f"patch {i}" for i in range(count)], dtype=object)
    objects = zarr.product_objects(
        num_patches=count,
        arrays=[ARRAYS[name] for name in arrays],
        coordinates={
            "patch_id": (("patch",), ids, {}),
            "x0": (("patch",), np.arange(count, dtype=np.float64), {"units": "m"}),
            "spatial_ref": ((), np.array(0, np.int64), {"crs_wkt": "x"}),
            **labels(*arrays),
        },
        attributes={"title": "t", "coordinates": "patch_id x0 spatial_ref"},
    )
    for name, patches in values.items():
        for number in range(2):
            objects[shard_path(name, number)] = encode(name, patches[number * 256 : (number + 1) * 256])
    for path, data in objects.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder, values, objects


@pytest.mark.slow
def test_xarray_reads_a_store_with_labels(store):
    folder, values, _ = store

    stack = xr.open_zarr(folder, zarr_format=3, consolidated=True)

    assert stack.s1.dims == ("patch", "polarization", "y", "x")
    assert stack.polarization.values.tolist() == ["VV", "VH"]
    for name, patches in values.items():
        np.testing.assert_array_equal(stack[name].values, patches)
    np.testing.assert_array_equal(stack.s2_60m.sel(band60="B09")[258].values, values["s2_60m"][258, 1])
    assert stack.s2_60m.dtype == np.uint16
    assert stack.patch_id.values[258] == "patch 258"


@pytest.mark.parametrize("array", ["s2_60m", "s1"])
def test_tensorstore_reads_scattered_patches(store, array):
    folder, values, _ = store
    opened = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / array)}}, open=True
    ).result()

    rows = [258, 3, 256, 0]
    np.testing.assert_array_equal(opened[rows].read().result(), values[array][rows])


def test_metadata_is_consolidated_and_comes_last(store):
    _, _, objects = store
    paths = [path for path in objects if "/c/" not in path]
    metadata = json.loads(objects["zarr.json"])

    assert paths[-1] == "zarr.json"
    # Arrays that are opened by themselves have documents of their own, all others stand in the group's alone.
    own = {path.removesuffix("/zarr.json") for path in paths if path.endswith("/zarr.json")}
    assert own == {"patch_id", "s1", "s2_60m"}
    coordinates = {"x0", "spatial_ref", "band60", "polarization", "label"}
    assert metadata["consolidated_metadata"]["metadata"].keys() == own | coordinates
    for name in own:
        alone = json.loads(objects[f"{name}/zarr.json"])
        assert metadata["consolidated_metadata"]["metadata"][name] == alone
    sharding = metadata["consolidated_metadata"]["metadata"]["s1"]["codecs"][0]
    assert sharding["name"] == "sharding_indexed"
    names = [codec["name"] for codec in sharding["configuration"]["codecs"]]
    assert names == ["bytes", "blosc", "crc32c"]
    blosc = sharding["configuration"]["codecs"][1]["configuration"]
    assert (blosc["cname"], blosc["clevel"], blosc["shuffle"], blosc["typesize"]) == (
        "zstd",
        3,
        "bitshuffle",
        4,
    )


@pytest.mark.parametrize("count", [1, 3])
def test_what_all_patches_share_has_no_object_and_is_read_as_it_was(count, tmp_path):
    patch = ("patch",)
    coordinates = {
        "patch_id": (patch, np.array([f"p{n}" for n in range(count)], dtype=object), {}),
        "split": (patch, np.array(["train"] * count, dtype=object), {}),
        "x0": (patch, np.arange(count, dtype=np.float64), {}),
        "time": (patch, np.full(count, 1_500_000_000), {"units": "seconds since 1970-01-01T00:00:00"}),
        "spatial_ref": ((), np.array(0, np.int64), {}),
        **labels("s1"),
    }
    objects = zarr.product_objects(
        num_patches=count, arrays=[ARRAYS["s1"]], coordinates=coordinates, attributes={}
    )
    for path, data in objects.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)

    stack = xr.open_zarr(tmp_path, zarr_format=3)

    assert set(objects) == {
        *("zarr.json", "s1/zarr.json", "patch_id/zarr.json", "patch_id/c/0", "label/c/0", "polarization/c/0"),
        *(["x0/c/0"] if count > 1 else []),
    }
    assert len(objects) == zarr.num_product_objects([ARRAYS["s1"]], 7, 4 - (count > 1))
    for name, (dims, values, _) in coordinates.items():
        assert stack[name].dims == dims
        found = stack[name].values
        assert (
            found.astype("datetime64[s]").astype(int) if name == "time" else found
        ).tolist() == values.tolist()
    assert zarr.read_patch_ids(objects.__getitem__, name="x").tolist() == [
        f"p{n}".encode() for n in range(count)
    ]


def test_the_same_product_gives_the_same_metadata():
    options = {
        "num_patches": 3,
        "arrays": [ARRAYS["s1"]],
        "coordinates": labels("s1"),
        "attributes": {},
    }

    assert zarr.product_objects(**options) == zarr.product_objects(**options)


def test_metadata_can_be_made_where_an_event_loop_runs():
    async def inside():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return zarr.product_objects(num_patches=1, arrays=[ARRAYS["s1"]], coordinates={}, attributes={})

    assert "zarr.json" in asyncio.run(inside())


# -- damage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_every_flipped_bit_is_noticed(seed):
    patches = pixels("s2_60m", 3)
    shard = encode("s2_60m", patches)
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(shard), 60):
        data = bytearray(shard)
        data[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(
            ChecksumError, match=r"object: (index|patch \d): the crc32c checksum does not match"
        ):
            decode("s2_60m", bytes(data), name="object")


@pytest.mark.parametrize("size", [0, 3, 100, -1, -5000])
def test_a_cut_shard_is_noticed(size):
    shard = encode("s2_60m", pixels("s2_60m", 3))

    with pytest.raises(ChecksumError, match="object: "):
        decode("s2_60m", shard[:size], name="object")


def test_a_row_that_is_not_there_is_named():
    shard = encode("s2_60m", pixels("s2_60m", 3))

    with pytest.raises(ChecksumError, match="object: patch 3 is not in the Zarr shard"):
        decode("s2_60m", shard, rows=np.array([3]), name="object")


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        (np.zeros((2, 2, 20, 20), np.int16), "s2_60m takes uint16"),
        (np.zeros((2, 3, 20, 20), np.uint16), "s2_60m takes uint16"),
        (np.zeros((0, 2, 20, 20), np.uint16), "1 to 256 patches, got 0"),
        (np.zeros((257, 2, 20, 20), np.uint16), "1 to 256 patches, got 257"),
    ],
)
def test_wrong_pixels_are_refused(patches, message):
    with pytest.raises(ValueError, match=message):
        encode("s2_60m", patches)
