"""Exports to pictures and GeoTIFFs: as Pillow and rasterio read them, by hand, after kills, and never mixed up."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import reben_cloud as rc
from reben_cloud.bigearthnet.about import FALSE_COLOR, RADAR, TRUE_COLOR
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.checks.doctor import diagnose
from reben_cloud.checks.files import verify_files
from reben_cloud.checks.verify import verify
from reben_cloud.errors import ConflictError, InvalidPatchError, NotFoundError, SourceError, StorageError
from reben_cloud.export.opened import find_exported_files
from reben_cloud.export.pictures import PictureOptions
from reben_cloud.root.metadata import patch_infos
from reben_cloud.root.patch import Patch
from reben_cloud.schema import Modality, Schema
from reben_cloud.sources.recognise import open_source
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from reben_cloud.views.recipes import MapColors, choose_recipes
from reben_cloud.views.resize import resize
from tests.commands import invoke as run
from tests.forked import ForkServer
from tests.official import table_of
from tests.roots import synthetic_root
from tests.test_other_schema import DEPTH, GROUND, NAMES, OPTICS, REEFS

NUM_PATCHES = 120


def contents(folder):
    """Path -> bytes of every file."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files") / "root"
    synthetic_root(folder, NUM_PATCHES, num_products=4)
    return folder


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """A root of the 24 real pairs."""
    folder = tmp_path_factory.mktemp("real") / "root"
    source, official = open_source(shared / "data" / "configilm_benv2_mock")
    build(make_plan(source, official, open_store(folder)))
    return folder


def tensors_of(root, selection, source=None):
    """Patch id -> modality -> tensor -> values, from the source itself, or as xarray has them."""
    source = source or SyntheticSource(NUM_PATCHES)
    names = selection.dataset.modalities
    return {
        info.patch_id: {
            name: REBEN.modality(name).decode(payload)
            for name, payload in source.read(info, names).payloads.items()
        }
        for info in patch_infos(selection.official())
    }


def by_hand(tensors, render):
    """A picture by the words of the documentation."""
    channels = []
    for channel in render.channels:
        values = tensors[channel.tensor].astype(np.float64)
        if channel.minus:
            values = values - tensors[channel.minus]
        share = (values - channel.low) / (channel.high - channel.low)
        channels.append(np.round(255 * np.clip(share, 0, 1) ** (1 / 1.5)))
    return np.stack(channels, axis=-1).astype(np.uint8)


# -- pictures ------------------------------------------------------------------------------------------


def test_pictures_of_real_patches_are_those_computed_by_hand(shared, real, tmp_path):
    selection = rc.open(real).search()
    source, _ = open_source(shared / "data" / "configilm_benv2_mock")
    truth = tensors_of(real, selection, source)

    report = selection.export_png(tmp_path / "out", pictures=["true-colour", "false-color", "s1"])

    assert (report.num_patches, report.num_files, report.changed) == (24, 72, True)
    for render, modality in ((TRUE_COLOR, "s2"), (FALSE_COLOR, "s2"), (RADAR, "s1")):
        files = sorted((tmp_path / "out" / render.name).rglob("*.png"))
        assert [file.stem for file in files] == sorted(truth)
        for file in files:
            with Image.open(file) as image:
                assert image.mode == "RGB"
                np.testing.assert_array_equal(image, by_hand(truth[file.stem][modality], render))
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    red = said["settings"]["pictures"]["false-color"]["channels"][0]
    assert red == {"tensor": "B08", "minus": None, "units": "1e-4", "black": 0, "brightest": 5000}
    assert said["settings"]["stretch"] == "fixed"


def test_the_picture_of_a_map_has_numbers_of_classes_and_their_colours(built, tmp_path):
    selection = rc.open(built).search(limit=20)
    selection.export_png(tmp_path / "out", pictures=["map"], size=60)
    legend = json.loads((tmp_path / "out" / "map.legend.json").read_text())
    colors = {entry["number"]: entry["color"] for entry in legend["classes"]}
    class_of = {code: entry["number"] for entry in legend["classes"] for code in entry["codes"]}

    for patch_id, tensors in tensors_of(built, selection).items():
        (file,) = (tmp_path / "out" / "map").rglob(f"{patch_id}.png")
        codes = tensors["map"]["Data"][
            1::2, 1::2
        ]  # the centre of the new pixel is a corner: the later pixel has it
        with Image.open(file) as image:
            numbers, shown = np.array(image), np.array(image.convert("RGB"))
        assert image.mode == "P"
        for line, column in np.ndindex(60, 60):
            number = class_of.get(int(codes[line, column]), 255)
            assert numbers[line, column] == number
            color = colors.get(number, "#000000")
            assert tuple(shown[line, column]) == tuple(bytes.fromhex(color[1:]))
    assert [entry["name"] for entry in legend["classes"]] == list(REBEN.classes.names)
    assert legend["none"] == {"number": 255, "color": "#000000", "codes": "all others"}


@pytest.mark.parametrize("size", [1, 7, 60, 119, 224, 448])
def test_bilinear_pictures_are_those_of_pillow(size):
    pixels = np.random.default_rng(size).integers(0, 256, (120, 120, 3), np.uint8)

    found = resize(pixels, size, "bilinear")

    for channel in range(3):
        image = Image.fromarray(pixels[..., channel].astype(np.float32))
        want = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(found[..., channel] - want).max() <= 0.501


def test_nearest_pixels_are_repeated():
    pixels = np.arange(9, dtype=np.uint8).reshape(3, 3)

    np.testing.assert_array_equal(resize(pixels, 6, "nearest"), pixels.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(resize(pixels, 1, "nearest"), pixels[1:2, 1:2])


def test_a_stretch_by_the_patch_takes_its_own_percentiles(built, tmp_path):
    selection = rc.open(built).search(limit=5)
    selection.export_png(tmp_path / "out", pictures=["radar"], stretch="patch", percentiles=(10, 90))

    for patch_id, tensors in tensors_of(built, selection).items():
        (file,) = (tmp_path / "out").rglob(f"{patch_id}.png")
        vv = tensors["s1"]["VV"].astype(np.float64)
        low, high = np.percentile(vv, (10, 90))
        want = np.round(255 * np.clip((vv - low) / (high - low), 0, 1) ** (1 / 1.5))
        with Image.open(file) as image:
            np.testing.assert_array_equal(np.array(image)[..., 0], want)


@pytest.mark.slow
def test_a_stretch_by_the_selection_takes_the_percentiles_of_all_and_says_so(built, tmp_path):
    selection = rc.open(built).search()
    selection.export_png(tmp_path / "out", pictures=["true-color", "radar"], stretch="selection")

    said = json.loads((tmp_path / "out" / "export.json").read_text())
    assert said["settings"]["stretch"] == {"percentiles": [2.0, 98.0], "of": "selection"}
    truth = tensors_of(built, selection)
    for number, band in enumerate(("B04", "B03", "B02")):
        every = np.concatenate([tensors["s2"][band].ravel() for tensors in truth.values()])
        want = [np.percentile(every, share, method="inverted_cdf") for share in (2, 98)]
        assert said["ranges"]["true-color"][number] == want
    every = np.concatenate([tensors["s1"]["VV"].ravel() for tensors in truth.values()])
    assert said["ranges"]["radar"][0] == pytest.approx(np.percentile(every, (2, 98)), abs=0.03)


def test_no_data_counts_in_no_percentile():
    from reben_cloud.export.pictures import PictureMaker
    from reben_cloud.export.pixels import PatchPixels

    vv = np.full((120, 120), np.nan, np.float32)
    vv[:60] = np.linspace(-20, -10, 7200, dtype=np.float32).reshape(60, 120)
    patch = PatchPixels("p", "q", 32633, 0, 0, {}, {"s1": {"VV": vv, "VH": vv - 6}})
    maker = PictureMaker(REBEN, PictureOptions(pictures=("radar",), stretch="patch", percentiles=(0, 100)))

    (data,) = maker.make(patch, {}).values()

    from io import BytesIO

    with Image.open(BytesIO(data)) as image:
        red = np.array(image)[..., 0]
    assert (red[0, 0], red[59, 119], red[60:].max()) == (0, 255, 0)


@pytest.mark.parametrize(
    ("flip", "turned"),
    [("horizontal", np.s_[:, ::-1]), ("vertical", np.s_[::-1]), ("both", np.s_[::-1, ::-1])],
)
def test_a_flip_mirrors_pictures_and_maps(built, tmp_path, flip, turned):
    selection = rc.open(built).search(limit=2)
    for name, how in (("plain", None), ("flipped", flip)):
        selection.export_png(tmp_path / name, pictures=["true-color", "map"], size=150, flip=how)

    files = sorted(p.relative_to(tmp_path / "plain") for p in (tmp_path / "plain").rglob("*.png"))
    assert len(files) == 4
    for file in files:
        with Image.open(tmp_path / "plain" / file) as one, Image.open(tmp_path / "flipped" / file) as other:
            np.testing.assert_array_equal(np.array(one)[turned], np.array(other))


# -- which pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "names", "said"),
    [
        (REEFS, ["depth"], "no recipe makes a picture of modality 'depth' of Reefs 1; it has the pictures ground"),
        (REEFS, ["true-color"], "picture 'true-color' is made of|unknown picture 'true-color'"),
        (REBEN, ["true-clor"], "unknown picture 'true-clor'; did you mean 'true-color'"),
        (REBEN.only(["s1"]), ["true-color"], "picture 'true-color' is made of B04, B03, B02, which this dataset lacks"),
        (REBEN, [], "no picture is asked for"),
    ],
)  # fmt: skip
def test_pictures_that_cannot_be_made_are_refused_by_name(schema, names, said):
    with pytest.raises(ValueError, match=said):
        choose_recipes(schema, names)


def test_pictures_follow_from_a_schema():
    assert [recipe.name for recipe in choose_recipes(REEFS, None)] == ["ground"]
    assert [r.name for r in choose_recipes(REBEN, ["s2", "map", "true-color"])] == [
        "true-color",
        "false-color",
        "map",
    ]
    colors = MapColors(REEFS)
    numbers = colors.numbers(np.array([[70_006, 70_000, 5]], np.int32))
    assert numbers.tolist() == [[6, 0, -1]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "size must be 1 to 4,096 pixels, got 0"),
        ({"stretch": "log"}, "stretch must be fixed or patch or selection, got 'log'"),
        ({"resampling": "cubic"}, "resampling must be bilinear or nearest"),
        ({"percentiles": (98, 2)}, "percentiles must rise from 0 or more to 100 at most, got 98 and 2"),
        ({"flip": "left"}, "flip must be None or horizontal"),
    ],
)
def test_options_out_of_bounds_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        PictureOptions(**options)


# -- GeoTIFFs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cog", [False, True])
def test_a_file_per_array_is_what_rasterio_reads(built, tmp_path, cog):
    rasterio = pytest.importorskip("rasterio")
    selection = rc.open(built).search(limit=6)
    bounds = dict(zip(selection.patch_ids, selection.column("proj:bbox").to_pylist(), strict=True))
    codes = dict(zip(selection.patch_ids, selection.column("proj:code").to_pylist(), strict=True))

    report = selection.export_geotiff(tmp_path / "out", cog=cog)

    assert report.num_files == 6 * 6  # five arrays, and beside the map a style for QGIS
    for patch_id, tensors in tensors_of(built, selection).items():
        for modality in REBEN.modalities:
            for array in modality.arrays:
                (path,) = (tmp_path / "out").rglob(f"{patch_id}_{array.name}.tif")
                tensor = modality.tensor_of(array)
                with rasterio.open(path) as file:
                    assert file.crs.to_string() == codes[patch_id]
                    assert list(file.bounds) == bounds[patch_id]
                    assert file.res == (tensor.pixel_m, tensor.pixel_m)
                    assert file.descriptions == array.tensors
                    assert file.units == (tensor.units,) * len(array.tensors)
                    assert file.compression.name == "deflate"
                    assert (np.isnan(file.nodata) and np.isnan(tensor.fill)) or file.nodata == tensor.fill
                    want = np.stack([tensors[modality.name][name] for name in array.tensors])
                    assert file.dtypes == (want.dtype.name,) * len(want)
                    np.testing.assert_array_equal(file.read(), want)
                    if cog:
                        check_cog(file)


def check_cog(file):
    """The rules that rio-cogeo checks, for an image without overviews (it needs none up to 512 pixels)."""
    assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert file.block_shapes[0] == (128, 128)
    assert not file.overviews(1)
    header = int(file.get_tag_item("IFD_OFFSET", "TIFF", bidx=1))
    assert header < 300
    assert "KNOWN_INCOMPATIBLE_EDITION=YES" not in file.get_tag_item("GDAL_STRUCTURAL_METADATA", "TIFF")
    assert int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1)) > header


def test_a_file_per_patch_has_all_bands_in_the_finest_pixels(built, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    selection = rc.open(built).search(limit=3)

    selection.export_geotiff(tmp_path / "all", per="patch")
    selection.export_geotiff(tmp_path / "s2", per="modality", modalities=["s2"])

    for patch_id, tensors in tensors_of(built, selection).items():
        want = {
            name: values.repeat(120 // len(values), 0).repeat(120 // len(values), 1)
            for modality in REBEN.modalities
            for name, values in ((t.name, tensors[modality.name][t.name]) for t in modality.tensors)
        }
        (path,) = (tmp_path / "all").rglob(f"{patch_id}.tif")
        with rasterio.open(path) as file:
            assert file.descriptions == tuple(want)
            assert file.dtypes[0] == "float32"
            assert np.isnan(file.nodata)
            for band, name in zip(file.read(), want, strict=True):
                expected = want[name].astype(np.float32)
                expected[want[name] == 0] = np.nan if name not in ("VV", "VH") else 0
                np.testing.assert_array_equal(band, expected)
        (path,) = (tmp_path / "s2").rglob(f"{patch_id}_s2.tif")
        with rasterio.open(path) as file:
            assert (file.dtypes[0], file.nodata, file.count) == ("uint16", 0, 12)
            np.testing.assert_array_equal(file.read(), [want[t.name] for t in REBEN.modality("s2").tensors])


def test_a_file_per_band_lies_in_the_official_folders_and_is_a_source(built, tmp_path):
    pytest.importorskip("rasterio")
    selection = rc.open(built).search(split="test")

    selection.export_geotiff(tmp_path / "out", per="band")

    source, official = open_source(tmp_path / "out")
    assert official == selection.official()
    for info in patch_infos(official):
        names = ("s2", "s1", "map")
        assert source.read(info, names).payloads == SyntheticSource(NUM_PATCHES).read(info, names).payloads
    with pytest.raises(
        NotFoundError, match=r"is an export to geotiff.*`reben-cloud build` makes a root of it"
    ):
        rc.open(tmp_path / "out")


def test_what_does_not_fit_a_geotiff_is_refused_by_name():
    from reben_cloud.export.geotiffs import GeotiffMaker

    with pytest.raises(
        ValueError, match=r"modality cube is not made of images alone: cube has shape \(3, 7, 5, 5\)"
    ):
        GeotiffMaker(REEFS, per="array", cog=False)
    with pytest.raises(ValueError, match="the official folders are those of reBEN, and Reefs 1 has other"):
        GeotiffMaker(REEFS, per="band", cog=False)
    with pytest.raises(ValueError, match="not cloud-optimised"):
        GeotiffMaker(REBEN, per="band", cog=True)
    with pytest.raises(ValueError, match="per must be array"):
        GeotiffMaker(REBEN, per="pixel", cog=False)
    mixed = GeotiffMaker(REEFS.only(["optics", "ground"]), per="patch", cog=False)
    assert mixed.settings["files"][".tif"]["dtype"] == "int32"


# -- a schema of one's own --------------------------------------------------------------------------------


SHORES = Schema(
    name="Shores",
    modalities=(
        Modality(name="s2", tensors=OPTICS.tensors, arrays=OPTICS.arrays),
        Modality(name="s1", tensors=DEPTH.tensors, key_suffix="_depth"),
        Modality(name="map", tensors=GROUND.tensors, key_suffix="_ground"),
    ),
    classes=replace(REEFS.classes, without_class=(70_007, 70_008)),
    patch_m=600,
    map_array="map",
)
"""What is called like reBEN's modalities, and is something else."""


class Shores(SyntheticSource):
    """Patches of that schema, with values that follow from their names."""

    schema = SHORES

    def names(self):
        return dict.fromkeys(self.schema.modality_names)

    def read(self, info, modalities):
        payloads = {}
        for name in modalities:
            random = np.random.default_rng(list(f"{info.patch_id} {name}".encode()))
            modality = self.schema.modality(name)
            low, high = (70_000, 70_009) if name == "map" else (0, 250)
            values = {
                tensor.name: random.integers(low, high, tensor.shape).astype(tensor.storage)
                for tensor in modality.tensors
            }
            payloads[name] = modality.encode(values)
        return Patch(info=info, payloads=payloads)


@pytest.fixture(scope="module")
def shores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shores") / "root"
    official = table_of(30, num_products=2)
    labels = pa.array([sorted(NAMES)] * 30, official.schema.field("labels").type)
    official = official.set_column(1, "labels", labels)
    build(make_plan(Shores(30), official, open_store(folder)))
    return folder


def test_another_schema_goes_out_by_its_own_facts(shores, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    selection = rc.open(shores).search()

    selection.export_png(tmp_path / "png", size=120)
    selection.export_geotiff(tmp_path / "tif", per="patch", modalities=["s2", "map"])
    with pytest.raises(ValueError, match="no recipe makes a picture of modality 's2' of Shores"):
        selection.export_png(tmp_path / "x", pictures=["s2"])
    with pytest.raises(ValueError, match="unknown picture 'true-color'"):
        selection.export_png(tmp_path / "x", pictures=["true-color"])

    source = Shores(30)
    legend = json.loads((tmp_path / "png" / "map.legend.json").read_text())
    assert [entry["codes"] for entry in legend["classes"]] == [[70_000 + n] for n in range(7)]
    for info in patch_infos(selection.official()):
        payloads = source.read(info, source.schema.modality_names).payloads
        ground = source.schema.modality("map").decode(payloads["map"])["ground"]
        (file,) = (tmp_path / "png" / "map").rglob(f"{info.patch_id}.png")
        want = np.where(ground < 70_007, ground - 70_000, 255).repeat(2, 0).repeat(2, 1)
        with Image.open(file) as image:
            np.testing.assert_array_equal(np.array(image), want)
        (file,) = (tmp_path / "tif").rglob(f"{info.patch_id}.tif")
        with rasterio.open(file) as tif:
            assert (tif.descriptions, tif.dtypes[0], tif.nodata) == (("near", "far", "ground"), "int32", 0)
            np.testing.assert_array_equal(tif.read(3), ground)
            assert tif.res == (10, 10)


def test_an_lmdb_of_another_schema_is_opened_again(shores, tmp_path):
    selection = rc.open(shores).search()
    selection.export_lmdb(tmp_path / "out", modalities=["s2", "map"])

    found = rc.open(tmp_path / "out")

    assert found.schema == SHORES.only(["s2", "map"])
    assert found.search().patch_ids == selection.patch_ids
    assert selection.export_lmdb(tmp_path / "out", modalities=["s2", "map"]).num_fetched == 0
    assert verify(found).ok, verify(found).problems


# -- the folder ----------------------------------------------------------------------------------------


def test_files_are_listed_with_sizes_and_checksums(built, tmp_path):
    import xxhash

    selection = rc.open(built).search(split="test")
    report = selection.export_png(tmp_path / "out", pictures=["true-color", "map"])

    listed = pq.read_table(tmp_path / "out" / "files.parquet").to_pylist()
    assert len(listed) == report.num_files == 2 * len(selection)
    assert [row["path"] for row in listed] == sorted(row["path"] for row in listed)
    for row in listed:
        data = (tmp_path / "out" / row["path"]).read_bytes()
        assert (row["bytes"], row["xxh3"]) == (len(data), xxhash.xxh3_64_intdigest(data))
        assert row["patch_id"] in row["path"]
    assert report.nbytes == sum(row["bytes"] for row in listed)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "export.json",
        "files.parquet",
        "map",
        "map.legend.json",
        "metadata.parquet",
        "metadata_for_patches_with_snow_cloud_or_shadow.parquet",
        "patches.parquet",
        "true-color",
    ]


@pytest.mark.slow
def test_an_export_is_never_another_one_by_chance(built, tmp_path):
    selection = rc.open(built).search(split="test")
    out = tmp_path / "out"
    selection.export_png(out)
    before = contents(out)

    assert selection.export_png(out).to_text().endswith("complete already, nothing to make")
    with pytest.raises(ConflictError, match=r"holds another export .* made with another size: name another"):
        selection.export_png(out, size=60)
    with pytest.raises(ConflictError, match="export of another kind"):
        selection.export_geotiff(out)
    with pytest.raises(ConflictError, match="holds another export"):
        rc.open(built).search(split="train").export_png(out)
    assert contents(out) == before

    both = rc.open(built).search(split="validation").export_png(out, update=True)
    assert (both.num_added, both.num_dropped) == (len(rc.open(built).search(split="validation")), 0)
    selection.export_png(out, prune=True)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("damage", "said", "num_made"),
    [
        (lambda out, png: png.unlink(), "png is missing", 1),
        (lambda out, png: os.truncate(png, 100), "png has 100 bytes, must have", 1),
        (lambda out, png: (out / "files.parquet").write_bytes(b"PAR1"), "files.parquet has 4 bytes", None),
        (lambda out, png: (out / "map.legend.json").unlink(), "map.legend.json is missing", None),
    ],
    ids=["lost", "cut", "listing", "legend"],
)
def test_a_damaged_folder_is_told_and_made_again(built, tmp_path, damage, said, num_made):
    out = tmp_path / "out"
    selection = rc.open(built).search(split="test")
    selection.export_png(out, pictures=["map"])
    before = contents(out)
    damage(out, next(out.rglob("*.png")))

    assert any(said in problem for problem in verify_files(find_exported_files(out)).problems)
    (doctor,) = (f for f in diagnose(str(out)) if f.subject == "root")
    assert doctor.level == "problem"
    assert said in doctor.detail
    assert selection.export_png(out, pictures=["map"]).changed
    assert contents(out) == before
    assert verify_files(find_exported_files(out)).ok


def test_verify_finds_other_bytes_and_files_of_others(built, tmp_path):
    out = tmp_path / "out"
    rc.open(built).search(split="test").export_png(out)
    png = next(out.rglob("*.png"))
    data = bytearray(png.read_bytes())
    data[len(data) // 2] ^= 1
    png.write_bytes(data)
    (png.parent / "holiday.png").write_bytes(b"")
    exported = find_exported_files(out)

    assert sorted(p.rpartition("/")[2] for p in verify_files(exported).problems) == [
        f"{png.name} is not the file that was written, its checksum differs",
        "holiday.png is not of this export",
    ]
    assert len(verify_files(exported, quick=True).problems) == 1
    (out / "export.json").write_text("{}")
    with pytest.raises(SourceError, match=r"export\.json: cannot be read"):
        find_exported_files(out)


def test_too_small_a_disk_is_told_by_the_first_files(built, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))

    with pytest.raises(StorageError, match=r"needs about [\d.]+ \w+ more and the disk of .* has [\d.]+ \w+;"):
        rc.open(built).search().export_png(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_patch_whose_name_is_no_file_name_is_refused(built, tmp_path):
    from reben_cloud.export.pixels import Squares

    selection = rc.open(built).search(limit=1)
    table = selection.columns(["id", "reben:product", "proj:code", "proj:bbox"])

    class Renamed:
        dataset = selection.dataset

        def columns(self, names):
            return table.set_column(0, "id", [["../../etc/passwd"]])

    with pytest.raises(InvalidPatchError, match="cannot be the name of a file"):
        Squares.of(Renamed(), ["s2"])


EXPORT = """
import sys
import reben_cloud as rc
selection = rc.open(sys.argv[1]).search()
print("ready", flush=True)
if sys.argv[3] == "png":
    selection.export_png(sys.argv[2], pictures=["true-color", "s1", "map"], size=200, stretch="selection", threads=2)
else:
    selection.export_geotiff(sys.argv[2], threads=2)
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def fork_server():
    with ForkServer("import reben_cloud, reben_cloud.export.geotiffs, reben_cloud.export.pictures") as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("form", ["png", "geotiff"])
def test_kills_leave_the_same_bytes(built, fork_server, tmp_path, form):
    def start(out):
        process = fork_server.start(EXPORT, built, out, form)
        assert process.stdout.readline() == b"ready\n"
        return process

    began = time.monotonic()
    assert start(tmp_path / "whole").communicate() == b"done\n"
    longest = 0.6 * (time.monotonic() - began)
    draw, kills = random.Random(form), 0
    out = tmp_path / "out"
    while kills < 8:
        process = start(out)
        time.sleep(draw.uniform(0, longest))
        process.kill()
        finished = process.communicate() == b"done\n"
        kills += not finished
        longest *= 0.7 if finished else 1  # the first one may have met a busy moment
        if out.exists():
            assert contents(out) == contents(tmp_path / "whole")
            shutil.rmtree(out)
    assert start(out).communicate() == b"done\n"

    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_a_run_that_continues_makes_only_what_is_missing(built, tmp_path):
    selection = rc.open(built).search()
    selection.export_png(tmp_path / "whole", size=40)

    def stop(items, total, what):
        for count, item in enumerate(items):
            if what == "export" and count == 3:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        selection.export_png(tmp_path / "out", size=40, progress=stop)
    (partial,) = tmp_path.glob(".out.*")
    with (partial / ".receipts").open("a") as receipts:
        receipts.write("0123456789abcdef [[torn")  # what a crash may leave

    report = selection.export_png(tmp_path / "out", size=40)

    assert 0 < report.num_made < NUM_PATCHES
    assert f"{NUM_PATCHES - report.num_made:,} were there" in report.to_text()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# -- the command ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_what_the_library_does(built, tmp_path):
    pictures = ["--format", "png", "--picture", "true-colour,map", "--size", "64", "--percentiles", "1,99"]
    result = run(
        "export", built, tmp_path / "png", "--split", "test", *pictures, "--stretch", "patch", "--json"
    )
    bands = ["--format", "geotiff", "--per", "patch", "--modality", "s1"]
    tiffs = run("export", built, tmp_path / "tif", "--split", "test", *bands)

    selection = rc.open(built).search(split="test")
    assert json.loads(result.stdout)["num_files"] == 2 * len(selection)
    assert tiffs.exit_code == 0, tiffs.stderr
    options = {"size": 64, "stretch": "patch", "percentiles": (1, 99)}
    selection.export_png(tmp_path / "same", pictures=["true-color", "map"], **options)
    assert contents(tmp_path / "png") == contents(tmp_path / "same")
    said = run("info", tmp_path / "png").stdout
    assert f"an export to png of {len(selection)} of the {NUM_PATCHES} patches of root" in said
    assert "pictures     true-color, map\n" in said
    assert "size         64\n" in said
    assert run("verify", tmp_path / "png").stdout.endswith("checksums: all right\n")
    assert run("verify", tmp_path / "tif", "--quick").exit_code == 0
    assert "is an export to png" in run("doctor", tmp_path / "png").stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", "448"], "--size is an option of --format png, jsonl, llava, and the format is lmdb"),
        (["--format", "png", "--cog"], "--cog is an option of --format geotiff, and the format is png"),
        (["--format", "png", "--modality", "s2"], "--modality is an option of --format lmdb, safetensors, geotiff"),
        (["--format", "png", "--picture", "tru-color"], "did you mean 'true-color'"),
        (["--format", "png", "--percentiles", "2"], "--percentiles must be two numbers"),
        (["--format", "png", "--size", "0"], "size must be 1 to 4,096 pixels"),
        (["--format", "geotif"], "'geotif' is not one of"),
        (["--format", "llava"], "--format llava needs --texts"),
        (["--format", "geotiff", "--per", "band", "--cog"], "not cloud-optimised"),
    ],
)  # fmt: skip
def test_typing_errors_are_wrong_usage(built, tmp_path, options, said):
    result = run("export", built, tmp_path / "out", *options)

    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_option_of_every_form():
    from reben_cloud.cli.export import OWN_OPTIONS

    shown = run("export", "--help").stdout

    for names in OWN_OPTIONS.values():
        for name in names:
            assert f"--{name.replace('_', '-')}" in shown


def test_the_package_has_pillow_nowhere():
    """Pictures need no library of pictures: Pillow is the independent reader here."""
    package = Path(rc.__file__).parent
    assert not [p for p in package.rglob("*.py") if "from PIL" in p.read_text()]
