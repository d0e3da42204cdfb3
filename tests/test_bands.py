"""Band facts agree with each other and with the real files."""

import pytest
import tifffile

from reben_cloud.bigearthnet.bands import (
    ARRAYS,
    BAND_SETS,
    BANDS,
    MODALITIES,
    STATISTICS_MEAN,
    STATISTICS_STD,
)


def test_every_band_is_in_one_array_and_every_array_in_one_modality():
    assert sorted(band for bands in ARRAYS.values() for band in bands) == sorted(BANDS)
    assert sorted(a for arrays in MODALITIES.values() for a in arrays) == sorted([*ARRAYS, "map"])
    assert STATISTICS_MEAN.keys() == STATISTICS_STD.keys() == BANDS.keys()
    for bands in ARRAYS.values():
        assert len({(BANDS[b].size_px, BANDS[b].dtype) for b in bands}) == 1


def test_named_sets_name_bands():
    assert all(band in BANDS for bands in BAND_SETS.values() for band in bands)
    assert len(BAND_SETS["ALL"]) == 14


@pytest.mark.parametrize("name", BANDS)
def test_shape_and_dtype_are_those_of_the_official_files(shared, name):
    folder = shared / "data" / "rico_hdl_bigearthnet" / "tiffs" / "BigEarthNet"
    (path,) = folder.rglob(f"*_{name}.tif")

    image = tifffile.imread(path)

    assert image.shape == (BANDS[name].size_px,) * 2
    assert image.dtype == BANDS[name].dtype
