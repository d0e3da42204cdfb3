"""The convention of BigEarthNet.txt's boxes and points, on a real map: objects are found again from what is written.

Objects are connected parts of one of the 19 classes. x is column / 120 from the west, y is row / 120 from the north;
the minimum is floored and the maximum ceiled to 0.01. A point is the mean of an object's pixel centres, to 0.01.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest
import tifffile

from reben_cloud.bigearthnet.labels import class_of_code
from reben_cloud.bigearthnet.texts import Box, Point, parse_box, parse_point
from reben_cloud.export.pictures import flipped

MAP = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57_reference_map.tif"
SIDE = 120
FLIPS = [None, "horizontal", "vertical", "both"]


@pytest.fixture(scope="module")
def classes(shared):
    (path,) = (shared / "data" / "rico_hdl_bigearthnet").rglob(MAP)
    return class_of_code()[tifffile.imread(path)]


def components(classes):
    """(class, mask) of every connected part, neighbours sharing an edge."""
    left = np.ones(classes.shape, bool)
    found = []
    while left.any():
        first = tuple(np.argwhere(left)[0])
        mask = np.zeros(classes.shape, bool)
        waiting = [first]
        while waiting:
            row, column = waiting.pop()
            inside = 0 <= row < classes.shape[0] and 0 <= column < classes.shape[1]
            if inside and left[row, column] and classes[row, column] == classes[first]:
                left[row, column], mask[row, column] = False, True
                waiting += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        found.append((int(classes[first]), mask))
    return found


def hundredth(pixels, rounding):
    return float((Decimal(pixels) / SIDE).quantize(Decimal("0.01"), rounding))


def box_of(mask):
    """By the rule, from half-open pixel edges."""
    rows, columns = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
    return Box(
        hundredth(columns[0], ROUND_FLOOR),
        hundredth(rows[0], ROUND_FLOOR),
        hundredth(columns[-1] + 1, ROUND_CEILING),
        hundredth(rows[-1] + 1, ROUND_CEILING),
    )


def point_of(mask):
    rows, columns = np.nonzero(mask)
    x, y = (Decimal(int(2 * values.sum() + values.size)) / (2 * values.size) for values in (columns, rows))
    return Point(hundredth(x, ROUND_HALF_EVEN), hundredth(y, ROUND_HALF_EVEN))


def found_by(box, kind, parts):
    """The components of a class that fill a box: they lie in it, and come within two pixels of each edge."""
    left, top, right, bottom = box.to_pixels(SIDE)
    for number, (other, mask) in enumerate(parts):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        gaps = (columns[0] - left, rows[0] - top, right - 1 - columns[-1], bottom - 1 - rows[-1])
        if other == kind and all(0 <= gap <= 2 for gap in gaps):
            yield number


@pytest.mark.parametrize("flip", FLIPS)
def test_components_are_found_again_from_their_written_boxes(classes, flip):
    parts = components(classes)
    mirrored = [(kind, flipped(mask, flip)) for kind, mask in parts]
    assert len(parts) == 5

    for number, (kind, mask) in enumerate(parts):
        read = parse_box(str(box_of(mask)))

        assert read.flipped(flip) == box_of(mirrored[number][1])
        assert list(found_by(read.flipped(flip), kind, mirrored)) == [number]


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("size", [120, 224, 336, 480])
def test_a_picture_of_another_size_has_the_components_in_their_boxes(classes, flip, size):
    """Every pixel of a component, and little else, lies in its box when map and box are scaled and mirrored."""
    source = (np.arange(size) * SIDE) // size
    for kind, mask in components(classes):
        picture = flipped(classes[np.ix_(source, source)] == kind, flip)
        part = flipped(mask[np.ix_(source, source)], flip)
        left, top, right, bottom = parse_box(str(box_of(mask))).flipped(flip).to_pixels(size)
        rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))

        assert picture[part].all()
        gaps = (columns[0] - left, rows[0] - top, right - 1 - columns[-1], bottom - 1 - rows[-1])
        assert all(0 <= gap <= 0.01 * size + 2 for gap in gaps)


@pytest.mark.parametrize("flip", FLIPS)
def test_points_are_the_means_of_pixel_centres(classes, flip):
    for _, mask in components(classes):
        read = parse_point(f"Which class is at {point_of(mask)}?")

        mirrored, again = read.flipped(flip), point_of(flipped(mask, flip))
        # A half is rounded to the even hundredth, which is another one in the mirror.
        assert abs(mirrored.x - again.x) < 0.0101
        assert abs(mirrored.y - again.y) < 0.0101
