"""What systems leave in folders is not data, at any depth below the folder that was given."""

import pytest

from reben_cloud.files.clutter import glob_data

CLUTTER = [".DS_Store", "._a.tif", "__MACOSX", "@eaDir", "Thumbs.db", ".ipynb_checkpoints", "lost+found"]


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("name", CLUTTER)
def test_clutter_and_what_is_in_it_are_passed_over(tmp_path, name):
    folder = tmp_path / ".hidden"  # what is above does not count
    data = [touch(folder / "a.tif"), touch(folder / "b" / "c.tif")]
    touch(folder / name / "d.tif")
    touch(folder / "b" / name / "c.tif")
    if "." in name[1:]:
        touch(folder / "e" / name)

    assert [path for path in glob_data(folder, "**/*") if path.is_file()] == data
    assert glob_data(folder, "*/c.tif") == data[1:]


def test_what_is_not_there_has_no_data(tmp_path):
    assert glob_data(tmp_path / "none", "*.tif") == []
