"""Files of the official profile: equal to the real ones, and as rasterio and tifffile read them."""

import io
import struct

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from reben_cloud.formats.geotiff import encode_band, encode_map


def real(shared, ending):
    (path,) = (shared / "data" / "rico_hdl_bigearthnet" / "tiffs").rglob(f"*{ending}.tif")
    return path


def read(path):
    with rasterio.open(path) as file:
        return file.read(1), file.crs.to_epsg(), file.transform, file.profile


@pytest.mark.parametrize("band", ["B01", "B02", "B05", "B8A", "B12"])
def test_s2_files_are_byte_for_byte_the_real_ones(shared, band):
    path = real(shared, f"_{band}")
    pixels, epsg, transform, _ = read(path)

    made = encode_band(pixels, epsg=epsg, left=transform.c, top=transform.f, pixel_m=int(transform.a))

    assert made == path.read_bytes()


@pytest.mark.parametrize("ending", ["_VV", "_VH", "_reference_map"])
def test_s1_and_maps_have_the_real_profile(shared, ending, tmp_path):
    # Not the same bytes: GDAL has changed the width of a tag, and zlib its compressor.
    pixels, epsg, transform, profile = read(real(shared, ending))
    place = {"epsg": epsg, "left": transform.c, "top": transform.f}

    made = (
        encode_map(pixels, **place)
        if ending == "_reference_map"
        else encode_band(pixels, **place, pixel_m=10)
    )

    (tmp_path / "made.tif").write_bytes(made)
    found, _, _, made_profile = read(tmp_path / "made.tif")
    assert np.array_equal(found, pixels)
    assert made_profile == profile
    with tifffile.TiffFile(io.BytesIO(made)) as ours, tifffile.TiffFile(real(shared, ending)) as theirs:
        assert len(ours.pages) == 1
        assert struct.unpack("<I", made[4:8]) == (8,)
        for tag in ("RowsPerStrip", "Predictor", "Compression", "GDAL_NODATA", "GeoKeyDirectoryTag"):
            assert (tag in ours.pages[0].tags) == (tag in theirs.pages[0].tags)
            if tag in theirs.pages[0].tags:
                assert ours.pages[0].tags[tag].value == theirs.pages[0].tags[tag].value


@settings(max_examples=30)
@given(
    size=st.sampled_from([6, 30, 60, 120, 240]),
    seed=st.integers(0, 2**32),
    epsg=st.sampled_from([32629, 32635, 32733]),
)
def test_any_map_reads_back(size, seed, epsg):
    rng = np.random.default_rng(seed)
    codes = rng.choice(np.array([111, 999, 523, 1], np.uint16), (size, size), p=rng.dirichlet(np.ones(4)))

    made = encode_map(codes, epsg=epsg, left=399_960, top=5_300_040)

    with rasterio.MemoryFile(made) as memory, memory.open() as file:
        assert np.array_equal(file.read(1), codes)
        assert file.crs.to_epsg() == epsg
        assert (file.transform.c, file.transform.f, file.transform.a) == (399_960, 5_300_040, 10)
        assert file.nodata == 0
