"""Level-2A products as they are, and the message that each kind of bad one gets."""

import hashlib
import re
import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio

from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.errors import SourceError
from reben_cloud.scenes.safe import open_safe
from reben_cloud.scenes.safe_metadata import QUALITY_CHECKS, S2_BANDS
from tests.scenes import PRODUCT, band_pixels, make_safe, write_jp2

PLACE = {"epsg": 32633, "left": 300_000, "top": 5_400_000}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_safe(tmp_path_factory.mktemp("safe"), side_m=2400)


@pytest.fixture
def safe(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / pristine.name)


def edit(path, old, new, count=-1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def main_xml(safe):
    return safe / "MTD_MSIL2A.xml"


def tile_xml(safe):
    return next(safe.glob("GRANULE/*/MTD_TL.xml"))


def image(safe, band):
    return next(safe.glob(f"GRANULE/*/IMG_DATA/R{BANDS[band].resolution_m}m/*_{band}_*.jp2"))


def test_facts_come_from_the_metadata(pristine):
    product = open_safe(pristine)

    assert product.name == PRODUCT
    assert (product.square, product.epsg, product.left, product.top) == ("33UUP", 32633, 300_000, 5_400_000)
    assert product.time == datetime(2017, 6, 13, 10, 10, 31, 26_000, tzinfo=UTC)
    assert product.shapes == {10: (240, 240), 20: (120, 120), 60: (40, 40)}
    assert product.failed_checks == ()
    assert product.offsets == {}


@pytest.mark.parametrize("band", S2_BANDS)
def test_every_band_is_read_at_its_native_resolution(pristine, band):
    found = open_safe(pristine).read_band(band)

    assert found.shape == (2400 // BANDS[band].resolution_m,) * 2
    assert np.array_equal(found, band_pixels(band, found.shape))


def test_the_baseline_number_brings_no_offset_and_the_offset_element_does(tmp_path):
    values = np.array([[0, 1, 999, 1000], [1001, 3000, 65_535, 0]], np.uint16)

    def pixels(name, shape):
        return np.resize(values, shape)

    made = open_safe(make_safe(tmp_path, side_m=240, offset=-1000, pixels=pixels))
    plain = open_safe(make_safe(tmp_path / "plain", side_m=240, pixels=pixels))

    assert np.array_equal(plain.read_band("B02"), np.resize(values, (24, 24)))
    shifted = np.array([[0, 1, 1, 1], [1, 2000, 64_535, 0]], np.uint16)
    assert np.array_equal(made.read_band("B8A"), np.resize(shifted, (12, 12)))


@pytest.mark.parametrize(
    ("checks", "failed"),
    [
        pytest.param({"GEOMETRIC_QUALITY": "FAILED"}, ("GEOMETRIC_QUALITY",), id="geometric"),
        pytest.param({"SENSOR_QUALITY": "NOTRUN"}, ("SENSOR_QUALITY",), id="neither passed nor failed"),
        pytest.param({"FORMAT_CORRECTNESS": "FAILED"}, (), id="format is not looked at"),
    ],
)
def test_quality_checks_exclude_unless_passed(tmp_path, checks, failed):
    assert open_safe(make_safe(tmp_path, side_m=240, checks=checks)).failed_checks == failed


def test_quality_checks_of_older_schemas_are_elements_and_may_be_absent(safe):
    check = '<quality_check checkType="RADIOMETRIC_QUALITY">PASSED</quality_check>'
    edit(main_xml(safe), check, "<RADIOMETRIC_QUALITY>FAILED</RADIOMETRIC_QUALITY>")
    edit(main_xml(safe), '<quality_check checkType="GENERAL_QUALITY">PASSED</quality_check>', "")

    assert open_safe(safe).failed_checks == ("RADIOMETRIC_QUALITY",)


BROKEN = [
    pytest.param(lambda s: main_xml(s).unlink(), "no MTD_MSIL2A.xml; is it a Sentinel-2 L2A", id="no metadata"),
    pytest.param(
        lambda s: main_xml(s).rename(s / "MTD_MSIL1C.xml"), "it is Level-1C, give it as --l1c", id="level 1C"
    ),
    pytest.param(lambda s: image(s, "B8A").unlink(), "band B8A is missing, there is no T33UUP_.*_B8A_20m", id="file"),
    pytest.param(
        lambda s: edit(main_xml(s), "_B05_20m<", "_B15_20m<"), "lists no 20 m image of B05", id="band not listed"
    ),
    pytest.param(
        lambda s: edit(main_xml(s), "R10m/T33UUP_20170613T101031_B02", "R10m/T33UVP_20170613T101031_B02"),
        "lists T33UVP_20170613T101031_B02_10m, an image of another product", id="image of another tile",
    ),
    pytest.param(
        lambda s: edit(main_xml(s), "T10:10:31.026Z", "T10:20:31.026Z"), "are two products mixed", id="other time"
    ),
    pytest.param(
        lambda s: shutil.copytree(tile_xml(s).parent, tile_xml(s).parent.with_name("L2A_T33UVP_A1_2")),
        r"2 GRANULE/\*/MTD_TL.xml, must be one; the product is mixed", id="two granules",
    ),
    pytest.param(lambda s: tile_xml(s).unlink(), "0 GRANULE.*the product is incomplete, fetch it", id="no granule"),
    pytest.param(
        lambda s: edit(tile_xml(s), "EPSG:32633", ""), "no CRS, MTD_TL.xml has no HORIZONTAL_CS_CODE", id="no CRS"
    ),
    pytest.param(
        lambda s: edit(tile_xml(s), "<ULX>300000", "<ULX>300060"), "square 33UUP at .*300000, 5400000", id="corner"
    ),
    pytest.param(
        lambda s: edit(tile_xml(s), "<NROWS>240", "<NROWS>250"), "are not one tile of at most", id="sizes disagree"
    ),
    pytest.param(lambda s: main_xml(s).write_bytes(b"<a><b>"), "damaged XML", id="cut XML"),
    pytest.param(
        lambda s: edit(main_xml(s), "PRODUCT_URI>S2A_MSIL2A", "PRODUCT_URI>S2A_MSIL1C"),
        "is not a Level-2A product name", id="name",
    ),
    pytest.param(
        lambda s: edit(main_xml(s), "BASELINE>99.99<", "BASELINE>05.11<"),
        "PROCESSING_BASELINE is 05.11, its name says N9999", id="baseline",
    ),
    pytest.param(
        lambda s: edit(main_xml(s), 'unit="none">10000<', 'unit="none">1000<'), "a reflectance of 1 is 1000", id="scale"
    ),
    pytest.param(
        lambda s: edit(tile_xml(s), "_T33UUP_N99", "_T33UVP_N99"), "MTD_TL.xml is of T33UVP, not T33UUP", id="tile id"
    ),
    pytest.param(
        lambda s: edit(tile_xml(s), "2017-06-13T10", "2017-06-23T10"), "sensed at 2017-06-23.* two products mixed",
        id="granule of another day",
    ),
    pytest.param(
        lambda s: edit(main_xml(s), f"{tile_xml(s).parent.name}/IMG_DATA/R20m", "L2A_T33UUP_A1_2/IMG_DATA/R20m"),
        "in another granule than", id="granule",
    ),
    pytest.param(
        lambda s: edit(main_xml(s), "<SPECIAL_VALUE_INDEX>0<", "<SPECIAL_VALUE_INDEX>7<"),
        "nodata value is 7, only 0 is supported", id="nodata",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("breaks", "message"), BROKEN)
def test_a_bad_product_is_refused_before_a_pixel_is_read(safe, breaks, message):
    breaks(safe)

    with pytest.raises(SourceError, match=message):
        open_safe(safe)


@pytest.mark.parametrize("form", ["{}_FLAG", "{}", "n1:{}_FLAG"])
@pytest.mark.parametrize("check", QUALITY_CHECKS)
def test_flags_of_early_products_exclude_like_todays_checks(safe, check, form):
    name = form.format(check)
    today = f'<quality_check checkType="{check}">PASSED</quality_check>'
    edit(main_xml(safe), today, f"<{name}>FAILED</{name}>")

    assert open_safe(safe).failed_checks == (check,)

    edit(main_xml(safe), "FAILED", "PASSED")
    assert open_safe(safe).failed_checks == ()


def test_products_of_2017_mark_their_elements_as_level_2a(safe):
    """With their flags, and images that are called L2A_T..."""
    for name in ("PRODUCT_URI", "IMAGE_FILE"):
        edit(main_xml(safe), f"<{name}>", f"<{name}_2A>")
        edit(main_xml(safe), f"</{name}>", f"</{name}_2A>")
    edit(main_xml(safe), "BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE")
    edit(main_xml(safe), "m/T33UUP_", "m/L2A_T33UUP_")
    for path in list(safe.glob("GRANULE/*/IMG_DATA/*/*.jp2")):
        path.rename(path.with_name(f"L2A_{path.name}"))
    passed = '<quality_check checkType="RADIOMETRIC_QUALITY">PASSED</quality_check>'
    edit(main_xml(safe), passed, "<RADIOMETRIC_QUALITY_FLAG>FAILED</RADIOMETRIC_QUALITY_FLAG>")

    product = open_safe(safe)

    assert product.failed_checks == ("RADIOMETRIC_QUALITY",)
    assert np.array_equal(product.read_band("B09"), band_pixels("B09", (40, 40)))
    edit(main_xml(safe), ">10000</L2A_BOA", ">1000</L2A_BOA")
    with pytest.raises(SourceError, match="a reflectance of 1 is 1000"):
        open_safe(safe)


@pytest.mark.parametrize("written", ["generalQuality", "GENERAL_QUALITY_FLAG", "General_Quality"])
def test_a_check_is_known_by_any_spelling_of_its_name(safe, written):
    edit(main_xml(safe), 'checkType="GENERAL_QUALITY">PASSED', f'checkType="{written}">FAILED')

    assert open_safe(safe).failed_checks == ("GENERAL_QUALITY",)


def test_of_a_check_that_is_said_twice_the_worse_counts(safe):
    passed = '<quality_check checkType="SENSOR_QUALITY">PASSED</quality_check>'
    edit(main_xml(safe), passed, passed.replace("PASSED", "FAILED") + passed)

    assert open_safe(safe).failed_checks == ("SENSOR_QUALITY",)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        pytest.param({"left": 400_000}, r"lies at \(400000, 5.4e\+06\) m in EPSG:32633", id="next square"),
        pytest.param({"top": 5_400_020}, "lies at", id="one pixel off"),
        pytest.param({"epsg": 32632}, "in EPSG:32632", id="other zone"),
        pytest.param({"pixel_m": 60}, "pixels of 60 m", id="other resolution"),
    ],
)
def test_an_image_that_lies_elsewhere_than_the_metadata_says_is_refused(safe, place, message):
    path = image(safe, "B11")
    path.unlink()
    write_jp2(path, band_pixels("B11", (120, 120)), **{**PLACE, "pixel_m": 20, **place})

    with pytest.raises(SourceError, match=rf"B11_20m.jp2: .*{message}.* metadata says \(300000, 5400000\) m"):
        open_safe(safe).read_band("B11")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_an_image_that_does_not_say_where_it_lies_is_told(safe, caplog):
    path = image(safe, "B11")
    path.unlink()
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", height=120, width=120, count=1, dtype="uint16", QUALITY=100,
        REVERSIBLE="YES",
    ) as file:  # fmt: skip
        file.write(band_pixels("B11", (120, 120)), 1)

    assert np.array_equal(open_safe(safe).read_band("B11"), band_pixels("B11", (120, 120)))
    assert "B11_20m.jp2: does not say where it lies" in caplog.text


def test_a_band_of_nothing_but_nodata_is_refused(safe):
    path = image(safe, "B09")
    path.unlink()
    write_jp2(path, np.zeros((40, 40), np.uint16), **PLACE, pixel_m=60)

    with pytest.raises(SourceError, match=r"B09_60m.jp2: every pixel is 0, .* band B09 is empty"):
        open_safe(safe).read_band("B09")


def test_an_offset_for_some_bands_only_is_refused(tmp_path):
    safe = make_safe(tmp_path, side_m=240, offset=-1000)
    edit(main_xml(safe), '<BOA_ADD_OFFSET band_id="3">-1000</BOA_ADD_OFFSET>', "")

    with pytest.raises(SourceError, match="given for some bands and not for B04"):
        open_safe(safe)


@pytest.mark.parametrize("baseline", ["N0400", "N0510", "N0511"])
def test_a_product_that_must_have_an_offset_and_says_none_is_refused(tmp_path, baseline):
    safe = make_safe(tmp_path, name=PRODUCT.replace("N9999", baseline), side_m=240, offset=-1000)
    path = main_xml(safe)
    path.write_text(re.sub("<BOA_ADD_OFFSET .*?</BOA_ADD_OFFSET>", "", path.read_text()))

    with pytest.raises(
        SourceError, match=f"no BOA_ADD_OFFSET, which every product of baseline {baseline} has"
    ):
        open_safe(safe)


@pytest.mark.parametrize("baseline", ["N0205", "N0301", "N9999"])
def test_a_product_of_another_baseline_needs_no_offset(tmp_path, baseline):
    safe = make_safe(tmp_path, name=PRODUCT.replace("N9999", baseline), side_m=240)

    assert open_safe(safe).offsets == {}


def test_a_folder_that_is_called_otherwise_than_its_product_is_refused(pristine, tmp_path):
    other = PRODUCT.replace("T33UUP", "T33UVP")
    for name in (f"{other}_20240101T000000.SAFE", f"{PRODUCT}_20250101T000000.SAFE"):
        with pytest.raises(SourceError, match=rf"{name}: its metadata calls it {PRODUCT}_20240101T000000"):
            open_safe(shutil.copytree(pristine, tmp_path / name))
    assert open_safe(shutil.copytree(pristine, tmp_path / "my product")).generation == "20240101T000000"


def test_an_image_of_another_size_is_refused(safe):
    path = image(safe, "B11")
    path.unlink()
    write_jp2(path, np.ones((60, 120), np.uint16), epsg=32633, left=0, top=0, pixel_m=20)

    with pytest.raises(
        SourceError, match=r"B11_20m.jp2: 1 band\(s\) of 60 x 120 uint16, .* says 1 of 120 x 120"
    ):
        open_safe(safe).read_band("B11")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda data: data[: len(data) // 3], "no complete JPEG 2000 file", id="cut"),
        pytest.param(
            lambda data: data[:3000] + bytes(len(data) - 3000), "no complete JPEG 2000 file", id="body lost"
        ),
        pytest.param(lambda data: bytes(len(data) - 2) + data[-2:], "cannot be decoded", id="zeros"),
    ],
)
def test_a_damaged_image_is_refused(safe, damage, message):
    path = image(safe, "B02")
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(SourceError, match=rf"B02_10m.jp2: {message}.*fetch the product again"):
        open_safe(safe).read_band("B02")


def test_one_damaged_block_among_others_is_refused(safe):
    """Where an image has several blocks, as all real ones have, GDAL reads a damaged one as zeros: as nodata."""
    path = image(safe, "B02")
    path.unlink()
    pixels = np.random.default_rng(0).integers(1000, 1040, (240, 240), dtype=np.uint16)
    write_jp2(path, pixels, **PLACE, pixel_m=10, tiled=True, blockxsize=64, blockysize=64)
    assert np.array_equal(open_safe(safe).read_band("B02"), pixels)
    data = bytearray(path.read_bytes())
    fifth = [match.start() for match in re.finditer(b"\xff\x90\x00\x0a", data)][4]
    data[fifth + 12 : fifth + 14] = b"\xff\xff"  # what follows the header of its fifth block
    path.write_bytes(data)

    with pytest.raises(SourceError, match=r"B02_10m.jp2: cannot be decoded.*fetch the product again"):
        open_safe(safe).read_band("B02")


@pytest.mark.parametrize(("name", "algorithm"), [("MD5", "md5"), ("SHA3-256", "sha3_256")])
def test_a_flipped_bit_is_found_by_the_manifest(safe, name, algorithm):
    path = image(safe, "B02")
    digest = hashlib.new(algorithm, path.read_bytes()).hexdigest().upper()
    (safe / "manifest.safe").write_text(
        f'<m><byteStream><fileLocation href="./{path.relative_to(safe)}"/>'
        f'<checksum checksumName="{name}">{digest}</checksum></byteStream></m>'
    )
    assert open_safe(safe).read_band("B02").shape == (240, 240)

    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(
        SourceError, match=rf"B02_10m.jp2: its {algorithm} is .*, manifest.safe says {digest.lower()}"
    ):
        open_safe(safe).read_band("B02")


def test_a_missing_folder_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such product folder"):
        open_safe(tmp_path / "S2A.SAFE")


@pytest.mark.parametrize(
    "name", ["@eaDir", ".ipynb_checkpoints", "__MACOSX", "._L2A_T33UUP_A010310_20170613T101031"]
)
def test_what_systems_leave_beside_the_granule_is_no_granule(safe, name):
    before = open_safe(safe)
    shutil.copytree(tile_xml(safe).parent, safe / "GRANULE" / name)
    (safe / "GRANULE" / ".DS_Store").touch()

    assert open_safe(safe) == before
