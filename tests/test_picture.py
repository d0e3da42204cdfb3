"""Pictures: the shades, the grid, and PNGs that other readers read."""

import numpy as np
import pytest

from reben_cloud.about import MapClass
from reben_cloud.bigearthnet.about import BRIGHTEST, RADAR, TRUE_COLOR
from reben_cloud.bigearthnet.bands import PATCH_M
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.views.picture import THUMBNAIL_PX, color_map, encode_png, shade, thumbnail, tiny_of

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def read_png(data):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.MemoryFile(data) as file, file.open() as image:
        return image.read().transpose(1, 2, 0)


def test_shades_rise_from_black_to_white_with_lifted_shadows():
    numbers = np.array([0, 1, BRIGHTEST // 4, BRIGHTEST, BRIGHTEST + 1, 65_535], np.uint16)

    pixels = shade(dict.fromkeys(("B04", "B03", "B02"), numbers[None]), TRUE_COLOR)

    assert pixels.shape == (1, 6, 3)
    assert pixels[0, :, 0].tolist() == [0, 1, 101, 255, 255, 255]


@pytest.mark.parametrize("side", [120, 86, 60, 8, 5])
def test_a_patch_in_few_pixels_has_the_means_of_red_green_and_blue(side):
    rng = np.random.default_rng(1)
    s2_10m = rng.integers(0, 3_000, (5, 4, side, side), np.uint16)

    tiny = tiny_of({"s2_10m": s2_10m}, REBEN)

    first = [at * side // THUMBNAIL_PX for at in range(THUMBNAIL_PX)]
    last = [max(at, end) for at, end in zip(first, [one - 1 for one in (*first[1:], side)], strict=True)]
    for line, column in np.ndindex(THUMBNAIL_PX, THUMBNAIL_PX):
        block = s2_10m[3, :, first[line] : last[line] + 1, first[column] : last[column] + 1]
        means = block.reshape(4, -1).mean(axis=1).astype(np.uint16)  # B02 B03 B04 B08
        bands = {name: means[number, None, None] for number, name in enumerate(("B02", "B03", "B04"))}
        assert tiny[3, line, column].tolist() == shade(bands, TRUE_COLOR)[0, 0].tolist()


def test_a_thumbnail_lays_patches_out_north_up_and_is_transparent_between():
    tiny = np.random.default_rng(3).integers(0, 256, (3, THUMBNAIL_PX, THUMBNAIL_PX, 3), np.uint8)
    x0 = np.array([0.0, 2 * PATCH_M, 0.0]) + 500_000
    y0 = np.array([0.0, 0.0, -PATCH_M]) + 4_000_000

    pixels = read_png(thumbnail(tiny, x0, y0, patch_m=PATCH_M))

    px = THUMBNAIL_PX
    assert pixels.shape == (2 * px, 3 * px, 4)
    np.testing.assert_array_equal(pixels[:px, :px, :3], tiny[0])
    np.testing.assert_array_equal(pixels[:px, 2 * px :, :3], tiny[1])
    np.testing.assert_array_equal(pixels[px:, :px, :3], tiny[2])
    assert pixels[:px, px : 2 * px, 3].max() == 0
    assert (pixels[..., 3] == 255).sum() == 3 * px**2


def test_a_png_is_read_as_it_was_written():
    pixels = np.random.default_rng(2).integers(0, 256, (7, 5, 3), np.uint8)

    np.testing.assert_array_equal(read_png(encode_png(pixels)), pixels)


def test_a_dataset_without_those_bands_has_no_thumbnail():
    assert tiny_of({}, REBEN.only(["s1", "map"])) is None


def test_radar_is_both_polarizations_and_their_ratio_and_no_data_is_black():
    vv, vh = np.array([[-12.5, -25, np.nan]], np.float32), np.array([[-18.5, -32, -20]], np.float32)

    (pixels,) = shade({"VV": vv, "VH": vh}, RADAR)

    def level(share):
        return round(255 * share ** (1 / 1.5))

    assert pixels[0].tolist() == [level(12.5 / 25), level(13.5 / 27), level(6 / 15)]
    assert pixels[1].tolist() == [0, 0, level(7 / 15)]
    assert pixels[2].tolist() == [0, level(12 / 27), 0]


def test_a_map_has_the_colours_of_its_classes_and_black_elsewhere():
    def entry(value, color):
        return MapClass(value=value, name="n", title="t", label=None, color=color)

    classes = [entry(70_000, "#010203"), entry(-5, "#0a0b0c")]

    pixels = color_map(np.array([[-5, 0, 70_000, 70_001]], np.int32), classes)

    assert pixels.tolist() == [[[10, 11, 12], [0, 0, 0], [1, 2, 3], [0, 0, 0]]]
    assert color_map(np.ones((2, 2), np.uint8), []).max() == 0
