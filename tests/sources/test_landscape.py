"""Made-up land: the same for good, all labels on the map, each pixel its own, and like land to look at."""

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.bigearthnet.labels import CLASSES, representative_code
from reben_cloud.root.patch import PatchInfo
from reben_cloud.sources.landscape import band_of, land_of
from reben_cloud.sources.synthetic import SyntheticSource

ID = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
LABELS = ("Arable land", "Mixed forest", "Pastures", "Urban fabric")
some_labels = st.lists(st.sampled_from(CLASSES), min_size=1, max_size=11, unique=True)
some_ids = st.integers(0, 99).map(lambda n: f"{ID[:-2]}{n:02}")


def test_a_patch_is_the_same_for_good():
    info = PatchInfo(patch_id=ID, labels=LABELS, split="train")
    patch = SyntheticSource(1).read(info, ("s2", "s1", "map"))

    assert {name: xxhash.xxh3_64_hexdigest(payload) for name, payload in patch.payloads.items()} == {
        "s2": "98c570e75541eca0",
        "s1": "430429f38bdcdc69",
        "map": "57b3a5e33f41d77c",
    }


@settings(max_examples=30)
@given(some_ids, some_labels)
def test_the_map_has_every_label_and_regions_of_one_size(patch_id, labels):
    codes, counts = np.unique(land_of(patch_id, labels), return_counts=True)

    assert set(codes) == {representative_code(label) for label in labels}
    assert counts.max() - counts.min() <= 1


@settings(max_examples=30)
@given(st.sampled_from(CLASSES))
def test_neighbours_go_on_where_others_end(label):
    west, east = (f"{ID[:-5]}{x}_57" for x in (26, 27))
    land = land_of(west, [label])
    two = np.concatenate([band_of(patch_id, "B08", land).astype(int) for patch_id in (west, east)], axis=1)
    steps = np.abs(np.diff(two, axis=1)).mean(axis=0)

    assert steps[119] <= 1.3 * steps.max(initial=0, where=np.arange(239) != 119)


@settings(max_examples=30)
@given(some_ids, some_labels)
def test_bands_have_their_shapes_dtypes_and_ranges(patch_id, labels):
    land = land_of(patch_id, labels)
    for name, band in BANDS.items():
        pixels = band_of(patch_id, name, land)
        assert pixels.shape == (band.size_px, band.size_px)
        assert pixels.dtype == band.dtype
        low, high = (-30, 0) if band.dtype == "float32" else (1, 10_000)
        assert low <= pixels.min() < pixels.max() <= high


@pytest.mark.parametrize("label", CLASSES)
def test_what_is_mixed_up_shows(label):
    """No two bands, patches, rows or columns are alike, not even of one class alone."""
    land, other = land_of(ID, [label]), f"{ID[:-2]}58"
    pixels = {name: band_of(ID, name, land) for name in BANDS}
    by_size = {}
    for name, values in pixels.items():
        assert not np.array_equal(values, band_of(other, name, land))
        assert len(np.unique(values, axis=0)) == len(np.unique(values, axis=1)) == len(values)
        for before in by_size.setdefault(values.shape, []):
            assert not np.array_equal(values, before)
        by_size[values.shape].append(values)


def seen(label, *names):
    land = land_of(ID, [label])
    return [float(band_of(ID, name, land).mean()) for name in names]


def test_it_looks_like_land():
    greenness = {}
    for label in CLASSES:
        red, infrared = seen(label, "B04", "B08")
        greenness[label] = (infrared - red) / (infrared + red)

    assert greenness["Broad-leaved forest"] > 0.7 > greenness["Arable land"] > 0.2
    assert max(greenness["Inland waters"], greenness["Marine waters"]) < 0
    assert seen("Urban fabric", "B04") > seen("Pastures", "B04") > seen("Coniferous forest", "B04")
    assert seen("Urban fabric", "VV") > seen("Mixed forest", "VV") > seen("Marine waters", "VV")
    for label in CLASSES:
        both, cross = seen(label, "VV", "VH")
        assert both > cross
