"""Pictures: the shades, the grid, and PNGs that other readers read."""

import numpy as np
import pytest

from reben_cloud.bigearthnet.bands import PATCH_M
from reben_cloud.bigearthnet.picture import (
    BRIGHTEST,
    THUMBNAIL_PX,
    encode_png,
    thumbnail,
    tiny_true_color,
    true_color,
)

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def read_png(data):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.MemoryFile(data) as file, file.open() as image:
        return image.read().transpose(1, 2, 0)


def test_shades_rise_from_black_to_white_with_lifted_shadows():
    numbers = np.array([0, 1, BRIGHTEST // 4, BRIGHTEST, BRIGHTEST + 1, 65_535], np.uint16)

    pixels = true_color(np.broadcast_to(numbers, (3, 1, 6)))

    assert pixels.shape == (1, 6, 3)
    assert pixels[0, :, 0].tolist() == [0, 1, 101, 255, 255, 255]


def test_a_patch_in_few_pixels_has_the_means_of_red_green_and_blue():
    rng = np.random.default_rng(1)
    s2_10m = rng.integers(0, 3_000, (5, 4, 120, 120), np.uint16)

    tiny = tiny_true_color(s2_10m)

    step = 120 // THUMBNAIL_PX
    for line, column in np.ndindex(THUMBNAIL_PX, THUMBNAIL_PX):
        block = s2_10m[3, :, line * step : (line + 1) * step, column * step : (column + 1) * step]
        means = block.reshape(4, -1).mean(axis=1).astype(np.uint16)[[2, 1, 0]]  # B02 B03 B04 B08 -> R G B
        assert tiny[3, line, column].tolist() == true_color(means[:, None, None])[0, 0].tolist()


def test_a_thumbnail_lays_patches_out_north_up_and_is_transparent_between():
    tiny = np.random.default_rng(3).integers(0, 256, (3, THUMBNAIL_PX, THUMBNAIL_PX, 3), np.uint8)
    x0 = np.array([0.0, 2 * PATCH_M, 0.0]) + 500_000
    y0 = np.array([0.0, 0.0, -PATCH_M]) + 4_000_000

    pixels = read_png(thumbnail(tiny, x0, y0))

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
