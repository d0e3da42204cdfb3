"""Sources: folders and their TIFFs, a root as a source, and what a SOURCE argument is taken for."""

import re
import shutil
import struct

import imagecodecs
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from safetensors.numpy import load

import reben_cloud as rc
from reben_cloud import grid
from reben_cloud.bigearthnet.reben import MAP_TENSOR, REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.checks.verify import verify
from reben_cloud.errors import ChecksumError, InvalidPatchError, SourceError
from reben_cloud.formats.geotiff_decode import read_pixels
from reben_cloud.root import metadata
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.sources.archives import ArchiveSource
from reben_cloud.sources.folders import FolderSource
from reben_cloud.sources.lmdb import LmdbSource
from reben_cloud.sources.recognise import open_source
from reben_cloud.sources.roots import RootSource
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from tests import official

TRIPLE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    official.write_folders(folder, official.table_of(12))
    return folder


@pytest.fixture
def copy(folders, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(folders, tmp_path / "copy")


def real_tiffs(shared):
    """(path, tensor, footprint) of the real GeoTIFFs at hand."""
    for path in sorted((shared / "data" / "rico_hdl_bigearthnet").rglob("*.tif")):
        name, _, part = path.stem.rpartition("_")
        if part == "map":
            name, tensor = path.stem.removesuffix("_reference_map"), REBEN.modality("map").places[MAP_TENSOR]
        else:
            tensor = REBEN.modality("s1" if part in ("VV", "VH") else "s2").places[part]
        if name.startswith("S1"):
            square, x, y = name.split("_")[-3:]
            name = f"{TRIPLE[:38]}T{square}_{x:0>2}_{y:0>2}"
        yield path, tensor, grid.footprint(name)


# -- TIFFs ---------------------------------------------------------------------------------------------


def test_real_tiffs_read_as_rasterio_and_imagecodecs_read_them(shared):
    count = 0
    for path, tensor, footprint in real_tiffs(shared):
        pixels = read_pixels(path.read_bytes(), tensor, footprint, name=path.name)

        found = np.frombuffer(pixels, tensor.dtype).reshape(tensor.shape)
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(found, file.read(1))
        np.testing.assert_array_equal(found, imagecodecs.tiff_decode(path.read_bytes()))
        count += 1
    assert count >= 15


def test_made_up_tiffs_have_the_bytes_of_gdal(folders):
    """The templates that benchmarks and tests are made with are the official profile, to the byte."""
    info = next(metadata.patch_infos(official.table_of(12)))
    footprint = grid.footprint(info.patch_id)
    payload = SyntheticSource(1).read(info, ["s2"]).payloads["s2"]
    for band, array in REBEN.modality("s2").decode(payload).items():
        assert official.tiff(array, footprint) == official._gdal(array, footprint, nodata=0), band


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"compress": "deflate"}, id="deflate"),
        pytest.param({"compress": "lzw", "predictor": 2}, id="lzw"),
        pytest.param({"tiled": True, "blockxsize": 64, "blockysize": 64}, id="tiled"),
        pytest.param({"BIGTIFF": "YES"}, id="bigtiff"),
        pytest.param({"ENDIANNESS": "BIG"}, id="big-endian"),
        pytest.param({"blockysize": 7}, id="other strips"),
    ],
)
def test_other_tiffs_are_read_too(options):
    footprint = grid.footprint(TRIPLE)
    array = np.arange(1, 14_401, dtype=np.uint16).reshape(120, 120)
    data = official._gdal(array, footprint, **options)

    pixels = read_pixels(data, REBEN.modality("s2").places["B02"], footprint, name="file")

    np.testing.assert_array_equal(np.frombuffer(pixels, "<u2").reshape(120, 120), array)


def broken_tiff(kind):
    footprint = grid.footprint(TRIPLE)
    array = np.ones((120, 120), np.uint16)
    match kind:
        case "neighbour":
            return official.tiff(array, grid.footprint(f"{TRIPLE[:-2]}58"))
        case "other zone":
            return official.tiff(array, (32634, *footprint[1:]))
        case "float":
            return official.tiff(array.astype(np.float32), footprint)
        case "20 m":
            return official.tiff(np.ones((60, 60), np.uint16), footprint)
        case "pixel size":
            return official._gdal(array, (footprint[0], footprint[1], 0, footprint[1] + 2400, footprint[4]))
        case "two bands":
            with rasterio.MemoryFile() as memory:
                place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(0, 0, 10, 10)}
                with memory.open(
                    driver="GTiff", width=120, height=120, count=2, dtype="uint16", **place
                ) as file:
                    file.write(np.stack([array, array]))
                return bytes(memory.read())
        case "half":
            return official.tiff(array, footprint)[:14_000]
        case "half deflated":
            noise = np.random.default_rng(0).integers(1, 9999, (120, 120)).astype(np.uint16)
            return official.tiff(noise, footprint, deflate=True)[:9_000]
        case "header only":
            return official.tiff(array, footprint)[:40]
        case "empty":
            return b""
        case "png":
            return b"\x89PNG\r\n\x1a\n" + bytes(100)
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("neighbour", SourceError, r"file: its upper left corner .* is it the file of another patch"),
        ("other zone", SourceError, "file: is in EPSG:32634, the patch lies in EPSG:32633"),
        ("float", InvalidPatchError, r"file: must be uint16 of shape \(120, 120\), got float32"),
        (
            "20 m",
            InvalidPatchError,
            r"file: must be uint16 of shape \(120, 120\), got uint16 of shape \(60, 60\)",
        ),
        ("pixel size", SourceError, "file: a pixel is 20 x 20 m, must be 10 x 10"),
        ("two bands", InvalidPatchError, r"file: must be uint16 of shape \(120, 120\), got .*2"),
        ("half", SourceError, "file: truncated, its pixels end at byte 29,196 and the file at 14,000"),
        ("half deflated", SourceError, "file: not a readable TIFF .* truncated"),
        ("header only", SourceError, "file: a truncated TIFF, it ends at byte 40"),
        ("empty", SourceError, "file: not a TIFF"),
        ("png", SourceError, "file: not a TIFF, it starts with"),
    ],
)
def test_a_wrong_tiff_is_named_with_what_is_wrong(kind, error, message):
    with pytest.raises(error, match=message):
        read_pixels(
            broken_tiff(kind), REBEN.modality("s2").places["B02"], grid.footprint(TRIPLE), name="file"
        )


def test_random_damage_to_the_tags_never_ends_in_another_error():
    footprint = grid.footprint(TRIPLE)
    good = official.tiff(np.ones((120, 120), np.uint16), footprint)
    rng = np.random.default_rng(1)
    for _ in range(300):
        data = bytearray(good)
        for at in rng.integers(0, 396, 3):
            data[at] = rng.integers(0, 256)
        try:
            pixels = read_pixels(bytes(data), REBEN.modality("s2").places["B02"], footprint, name="file")
        except (SourceError, InvalidPatchError):
            continue
        assert len(pixels) == 28_800


# -- folders -------------------------------------------------------------------------------------------


def test_folders_give_the_payloads_that_they_were_made_of(folders):
    source, table = open_source(folders)
    truth = SyntheticSource(12)

    assert isinstance(source, FolderSource)
    for info in metadata.patch_infos(table):
        got = source.read(info, ("s2", "s1", "map"))
        assert got.payloads == truth.read(info, ("s2", "s1", "map")).payloads
        assert load(got.payloads["s1"]).keys() == {"VV", "VH"}


def test_tiff_endings_and_missing_product_folders_are_no_matter(folders, tmp_path):
    for path in folders.rglob("*.tif"):
        target = tmp_path / path.relative_to(folders).parts[0] / path.parent.name / f"{path.stem}.tiff"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copy(folders / "metadata.parquet", tmp_path)

    source, table = open_source(tmp_path)

    assert [len(names) for names in source.names().values()] == [12, 12, 12]
    info = next(metadata.patch_infos(table))
    assert source.read(info, ("s1",)).payloads == SyntheticSource(1).read(info, ("s1",)).payloads


def test_a_missing_band_or_patch_is_named(copy):
    source, table = open_source(copy)
    infos = list(metadata.patch_infos(table))
    next(copy.rglob(f"{infos[0].patch_id}_B05.tif")).unlink()
    shutil.rmtree(next(copy.rglob(infos[1].s1_name)))

    with pytest.raises(SourceError, match=f"{infos[0].patch_id}: .* has no file for B05"):
        source.read(infos[0], ("s2",))
    with pytest.raises(SourceError, match=f"{infos[1].s1_name}: no folder .* unpacked completely"):
        source.read(infos[1], ("s1",))


def test_an_incomplete_or_foreign_folder_is_refused_before_anything_is_written(copy, tmp_path):
    _, table = open_source(copy)
    patch_id = table["patch_id"][0].as_py()
    folder = next(copy.glob(f"Reference_Maps/*/{patch_id}"))
    shutil.rmtree(folder)

    source, table = open_source(copy)
    with pytest.raises(SourceError, match=rf"1 patch is incomplete \(1 lacks map\), 11 complete: {patch_id}"):
        make_plan(source, table, open_store(tmp_path / "root"))

    folder.with_name(f"{patch_id[:-5]}90_90").mkdir()
    for other in folder.parent.parent.glob("*/*"):
        if other.name != f"{patch_id[:-5]}90_90":
            shutil.rmtree(other)
    folder.with_name(f"{patch_id[:-5]}90_90").joinpath("x_reference_map.tif").touch()
    source, table = open_source(copy)
    with pytest.raises(SourceError, match=r"90_90: this map name .* in no row of the metadata, nor does any"):
        make_plan(source, table, open_store(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


def zero_pixel(data):
    return data[:-2] + b"\0\0"


def flat_map(data):
    return official.tiff(np.full((120, 120), 523, np.uint16), read_footprint(data), deflate=True)


def unknown_code(data):
    codes = imagecodecs.tiff_decode(data).copy()
    codes[3, 4] = 777
    return official.tiff(codes, read_footprint(data), deflate=True)


def read_footprint(data):
    with rasterio.MemoryFile(data) as memory, memory.open() as file:
        left, bottom, right, top = file.bounds
        return (file.crs.to_epsg(), *map(int, (left, bottom, right, top)))


@pytest.mark.parametrize(
    ("pattern", "change", "message"),
    [
        pytest.param("*_B09.tif", zero_pixel, "B09 has a pixel of 0, which means nodata", id="nodata"),
        pytest.param(
            "*_reference_map.tif",
            flat_map,
            "the reference map holds Marine waters, the metadata",
            id="labels",
        ),
        pytest.param(
            "*_reference_map.tif",
            unknown_code,
            "has the value 777, which is not a code of any class",
            id="code",
        ),
    ],
)
def test_pixels_that_contradict_the_metadata_stop_the_build(copy, tmp_path, pattern, change, message):
    # The patch with the inland-most labels: "Marine waters" contradicts it.
    table = pq.read_table(copy / "metadata.parquet")
    row = next(r for r in table.to_pylist() if "Marine waters" not in r["labels"])
    path = next(copy.rglob(row["patch_id"] + pattern.removeprefix("*")))
    path.write_bytes(change(path.read_bytes()))

    source, table = open_source(copy)
    with pytest.raises((SourceError, InvalidPatchError), match=f"{row['patch_id']}: .*{message}"):
        build(make_plan(source, table, open_store(tmp_path / "root")))
    assert not (tmp_path / "root" / "manifest.json").exists()


def one_pixel(value):
    def change(pixels):
        pixels[3, 4] = value
        return pixels

    return change


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        pytest.param("*_V?.tif", lambda db: 10 ** (db / 10), "all pixels of s1 are above 0 dB", id="power"),
        pytest.param(
            "*_V?.tif", lambda db: 10 ** (db / 20), "all pixels of s1 .* power or amplitude", id="amplitude"
        ),
        pytest.param(
            "*_VV.tif", one_pixel(np.inf), "VV of {s1} has a pixel of inf, which is not", id="infinity"
        ),
        pytest.param("*_VH.tif", one_pixel(-np.inf), "VH of {s1} has a pixel of -inf", id="logarithm of 0"),
        pytest.param("*_VH.tif", one_pixel(np.nan), "VH of {s1} has a pixel of nan", id="not a number"),
        pytest.param("*_VH.tif", one_pixel(-9999), "VH of {s1} has a pixel of -9999", id="nodata"),
        pytest.param("*_VV.tif", one_pixel(3e38), r"VV of {s1} has a pixel of 3e\+38", id="largest float"),
    ],
)
def test_values_that_are_not_decibels_stop_the_build(copy, tmp_path, names, change, message):
    row = pq.read_table(copy / "metadata.parquet").to_pylist()[0]
    for path in copy.rglob(row["s1_name"] + names.removeprefix("*")):
        with rasterio.open(path, "r+") as file:
            file.write(change(file.read(1)).astype(np.float32), 1)
    source, table = open_source(copy)

    with pytest.raises(SourceError, match=f"{row['patch_id']}: {message.format(s1=row['s1_name'])}"):
        build(make_plan(source, table, open_store(tmp_path / "root")))


@pytest.mark.parametrize("suffix", [".tiff", ".TIF", ".TIFF"])
def test_two_files_of_one_band_are_refused(copy, tmp_path, suffix):
    band = next(copy.rglob("*_B04.tif"))
    shutil.copy(band, band.with_suffix(suffix))
    source, table = open_source(copy)

    with pytest.raises(SourceError, match=rf"{band.parent}: has .*{band.stem}\.tif.* leave the right one"):
        build(make_plan(source, table, open_store(tmp_path / "root")))


def test_a_folder_in_place_of_a_band_is_named(copy, tmp_path):
    band = next(copy.rglob("*_B04.tif"))
    band.unlink()
    band.mkdir()
    source, table = open_source(copy)

    with pytest.raises(SourceError, match=rf"{band.name}: cannot be read \(Is a directory\)"):
        build(make_plan(source, table, open_store(tmp_path / "root")))


def swap_polarizations(folder, s1_names):
    for name in s1_names:
        (vv,) = folder.rglob(f"{name}_VV.tif")
        vh, spare = vv.with_name(vv.name.replace("_VV", "_VH")), vv.with_suffix(".spare")
        vv.rename(spare)
        vh.rename(vv)
        spare.rename(vh)


def test_swapped_polarizations_of_one_product_are_noticed_and_named(copy, tmp_path):
    source, table = open_source(copy)
    infos = list(metadata.patch_infos(table))
    product = infos[0].patch_id[:-6]
    swap_polarizations(copy, [info.s1_name for info in infos if info.patch_id.startswith(product)])
    plan = make_plan(source, table, open_store(tmp_path / "root"))

    with pytest.raises(SourceError, match=f"mean VV .* the first is {infos[0].s1_name} of {product}_"):
        build(plan)


def test_swapped_polarizations_stop_the_build(copy, tmp_path):
    source, table = open_source(copy)
    swap_polarizations(copy, table.column("s1_name").to_pylist())
    with pytest.raises(SourceError, match="VV must be above VH, are the bands swapped"):
        build(make_plan(source, table, open_store(tmp_path / "root")))


def test_a_source_that_is_mended_needs_a_new_scratch_folder_and_is_told_so(copy, tmp_path):
    band = next(copy.rglob("*_B09.tif"))
    whole = band.read_bytes()
    band.write_bytes(zero_pixel(whole))
    source, table = open_source(copy)
    plan = make_plan(source, table, open_store(tmp_path / "root"), scratch=tmp_path / "scratch")
    with pytest.raises(SourceError, match="remove it once the source is mended") as caught:
        build(plan)
    band.write_bytes(whole)

    shutil.rmtree(re.search(r"is in (.*): remove", str(caught.value)).group(1))
    build(plan)

    assert not verify(rc.open(tmp_path / "root"), deep=True).problems


def test_a_corner_that_is_not_the_patches_names_the_file(copy, tmp_path):
    path = next(copy.rglob("*_B12.tif"))
    data = bytearray(path.read_bytes())
    at = official._places(official._template(60, "<u2"))["tie"] + 24
    struct.pack_into("<d", data, at, struct.unpack_from("<d", data, at)[0] + 60)
    path.write_bytes(data)

    source, table = open_source(copy)
    with pytest.raises(SourceError, match=f"{path.name}: its upper left corner"):
        build(make_plan(source, table, open_store(tmp_path / "root")))


# -- roots ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    url = tmp_path_factory.mktemp("roots") / "root"
    build(make_plan(SyntheticSource(60), official.table_of(60), open_store(url)))
    return url


@pytest.mark.slow
def test_a_root_can_be_cut_anew_and_copied(root, tmp_path):
    source, table = open_source(root)
    options = PlacementOptions(order="shuffled", seed=5, shard_samples=7)
    build(make_plan(source, table, open_store(tmp_path / "cut"), options=options))
    build(make_plan(source, table, open_store(tmp_path / "copy")))

    assert isinstance(source, RootSource)
    report = verify(rc.open(tmp_path / "cut"), deep=True, against=SyntheticSource(60))
    assert report.problems == ()
    assert rc.open(tmp_path / "cut").manifest["groups"]["train"]["num_shards"] > 1
    shards = {p.relative_to(root): p.read_bytes() for p in root.rglob("*.tar")}
    assert shards == {
        p.relative_to(tmp_path / "copy"): p.read_bytes() for p in (tmp_path / "copy").rglob("*.tar")
    }


def test_a_part_of_a_root_can_be_built_in_fewer_modalities(root, tmp_path):

    wanted = rc.open(root).search(split="validation").patch_ids
    source, table = open_source(root)
    build(make_plan(source, table, open_store(tmp_path / "part"), modalities=["s2"], only=wanted))

    part = rc.open(tmp_path / "part")
    assert sorted(part.search().patch_ids) == sorted(wanted)
    assert part.manifest["modalities"] == ["s2"]
    assert verify(part, deep=True, against=source).ok


def test_a_damaged_payload_of_a_root_is_not_copied(root, tmp_path):
    broken = shutil.copytree(root, tmp_path / "broken")
    shard = next(broken.rglob("train-s1-000000.tar"))
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)

    source, table = open_source(broken)
    with pytest.raises(ChecksumError, match=r"train-s1-000000.tar: the s1 payload of S2\w+ is damaged"):
        build(make_plan(source, table, open_store(tmp_path / "root")))


@pytest.mark.s3
def test_a_root_on_s3_is_a_source(root, s3_bucket, tmp_path):
    remote = open_store(f"{s3_bucket.url}/root", s3_bucket.storage_options)
    for path in root.rglob("*"):
        if path.is_file():
            remote.put(str(path.relative_to(root)), path.read_bytes())

    source, table = open_source(remote.url, storage_options=s3_bucket.storage_options)
    build(make_plan(source, table, open_store(tmp_path / "copy"), modalities=["map"]))

    assert verify(rc.open(tmp_path / "copy"), deep=True, against=SyntheticSource(60)).ok


# -- what SOURCE is ------------------------------------------------------------------------------------


def test_sources_are_recognised(folders, root, shared, tmp_path):
    official.write_archives(tmp_path, official.table_of(2), ["map"])

    assert isinstance(open_source(folders)[0], FolderSource)
    assert isinstance(open_source(root)[0], RootSource)
    assert isinstance(open_source(root.as_uri())[0], RootSource)
    assert isinstance(open_source("synthetic:5")[0], SyntheticSource)
    assert isinstance(open_source(tmp_path)[0], ArchiveSource)
    assert isinstance(open_source(tmp_path / "Reference_Maps.tar.zst")[0], ArchiveSource)
    assert isinstance(open_source(shared / "data" / "configilm_benv2_mock")[0], LmdbSource)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("synthetic:0", "write synthetic:N with N patches"),
        ("synthetic:x", "write synthetic:N with N patches"),
        ("synthetic:999999", "999,999 synthetic patches are wanted and 4,553 ids are known"),
        ("/no/such/folder", "/no/such/folder: no such folder; a source is"),
        ("memory://nothing", "memory://nothing: no root, no archives"),
    ],
)
def test_what_is_no_source_gets_told_what_one_is(source, message):
    with pytest.raises(SourceError, match=message):
        open_source(source)


def test_an_empty_folder_and_missing_metadata_are_told_apart(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty: nothing known in it; a source has the official archives"):
        open_source(tmp_path / "empty")

    official.write_archives(tmp_path / "lonely", official.table_of(1), ["map"])
    (tmp_path / "lonely" / "metadata.parquet").unlink()
    with pytest.raises(SourceError, match=r"lonely: no metadata\*.parquet in or beside it"):
        open_source(tmp_path / "lonely")
