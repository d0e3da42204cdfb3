"""What inputs are known by: a file that was written again is told, whatever its size and time say."""

import os

import pytest

from reben_cloud.files.sketch import WHOLE_BYTES, sketch
from reben_cloud.scenes.provenance import differences, identify, identify_many


def write_back(path, data):
    """Other bytes with the size and time of the old ones."""
    stat = path.stat()
    assert len(data) == stat.st_size
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def flipped(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    return bytes(data)


def large(path):
    """A sparse file, above what is read whole, with a number every 1,000,003 bytes."""
    with path.open("wb") as file:
        file.truncate(WHOLE_BYTES + 12345)
        for place in range(0, WHOLE_BYTES, 1_000_003):
            file.seek(place)
            file.write(place.to_bytes(8, "little"))
    return path


def test_sketches_are_these_for_good(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "small").write_bytes(bytes(range(256)) * 40)

    sketches = [sketch(path) for path in (tmp_path / "empty", tmp_path / "small", large(tmp_path / "large"))]

    assert sketches == ["2d06800538d394c2", "c03d2231ab9348f3", "3bb8e3a7adf6d970"]


@pytest.mark.parametrize("place", [0, 77, 5000, 9999])
def test_any_byte_of_a_small_file_counts(tmp_path, place):
    path = tmp_path / "MTD_MSIL2A.xml"
    path.write_bytes(os.urandom(10_000))
    before = identify("Sentinel-2", path)

    write_back(path, flipped(path, place))

    assert differences(before, identify("Sentinel-2", path)).startswith(
        "Sentinel-2 MTD_MSIL2A.xml: was 10,000 bytes of "
    )


def test_of_a_large_file_the_stated_parts_count_and_the_rest_does_not(tmp_path):
    path = large(tmp_path / "scene.tif")
    before = sketch(path)
    step = path.stat().st_size // 256
    end = path.stat().st_size - 256 * 1024
    told, untold = (
        [0, 4095, step, 200 * step + 4095, end, end + 256 * 1024 - 1],
        [4096, step - 1, 200 * step + 4096],
    )

    def changes(place):
        with path.open("r+b") as file:
            file.seek(place)
            old = file.read(1)
            file.seek(place)
            file.write(bytes([old[0] ^ 1]))
            file.flush()
            found = sketch(path)
            file.seek(place)
            file.write(old)
        return found != before

    assert all(changes(place) for place in told)
    assert not any(changes(place) for place in untold)


def test_of_many_files_names_sizes_and_times_count_and_bytes_of_a_sample(tmp_path):
    paths = [tmp_path / f"{number:03d}.tif" for number in range(130)]
    for number, path in enumerate(paths):
        path.write_bytes(number.to_bytes(100, "big"))
    before = identify_many("Sentinel-1", paths)
    told = []

    for path in paths:
        old = path.read_bytes()
        write_back(path, flipped(path, 50))
        if identify_many("Sentinel-1", paths) != before:
            told.append(paths.index(path))
        write_back(path, old)
    os.utime(paths[1], ns=(0, 0))

    assert told == list(range(0, 130, 3))
    assert identify_many("Sentinel-1", paths) != before
    assert identify_many("Sentinel-1", [tmp_path]).startswith("130 files, digest ")
    assert identify_many("Sentinel-1", []).startswith("0 files, digest ")


def test_what_earlier_versions_recorded_is_compared_as_far_as_it_goes(tmp_path):
    path = tmp_path / "clc.gpkg"
    path.write_bytes(b"before")
    now = {
        **identify("land cover", path),
        "patches": identify_many("Sentinel-1", [path]),
        "patch size": "1200 m",
    }

    earlier = {key: value.partition(", xxh3 ")[0] for key, value in now.items()}

    assert earlier != now
    assert differences(earlier, now) == ""
    path.write_bytes(b"longer than before")
    assert "land cover clc.gpkg: was 6 bytes" in differences(earlier, identify("land cover", path))
    assert "patches: was 1 files" in differences(earlier, {"patches": identify_many("Sentinel-1", [path])})
