"""Products that come as zips give what their folders give."""

import json
import shutil
import zipfile

import pytest
from typer.testing import CliRunner

from reben_cloud.cli import app
from reben_cloud.errors import ConflictError, SourceError
from reben_cloud.scenes.inputs import find_products
from reben_cloud.scenes.safe import open_safe
from reben_cloud.scenes.unzip import unzip_products
from tests.scenes import PRODUCT, make_landscape

NAME = f"{PRODUCT}_20240101T000000.SAFE"


@pytest.fixture(scope="module")
def landscape(tmp_path_factory):
    return make_landscape(tmp_path_factory.mktemp("landscape"), patches=2)


def zipped(safe, target, *, level=zipfile.ZIP_STORED):
    """A zip as downloads are: with more in it than is needed, and what systems leave."""
    with zipfile.ZipFile(target, "w", level) as archive:
        archive.writestr(zipfile.ZipInfo(f"{safe.name}/", (2024, 2, 3, 4, 5, 6)), "")
        for path in sorted(safe.rglob("*")):
            if path.is_file():
                info = zipfile.ZipInfo(str(path.relative_to(safe.parent)), (2024, 2, 3, 4, 5, 6))
                archive.writestr(info, path.read_bytes())
        image = next(safe.rglob("*_B05_20m.jp2")).relative_to(safe.parent)
        for other in ("R60m/T33UUP_x_B05_60m.jp2", "R10m/T33UUP_x_TCI_10m.jp2", "R20m/T33UUP_x_AOT_20m.jp2"):
            archive.writestr(str(image.parent.parent / other), b"not needed")
        archive.writestr("__MACOSX/._x", b"")
    return target


def prepare(landscape, s2, out, *more):
    given = ["--s2", s2, "--s1", landscape / "s1", "--clc", landscape / "clc.gpkg", *more]
    return CliRunner().invoke(app, ["prepare", *map(str, given), "--out", str(out)])


def tiffs(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".tif", ".parquet") and ".prepared" not in path.parts
    }


@pytest.mark.parametrize("level", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_zip_gives_what_the_folder_gives(landscape, tmp_path, level):
    archive = zipped(landscape / "s2" / NAME, tmp_path / f"{NAME}.zip", level=level)

    by_zip = prepare(landscape, archive, tmp_path / "zip")
    by_folder = prepare(landscape, landscape / "s2", tmp_path / "folder")

    assert (by_zip.exit_code, by_folder.exit_code) == (0, 0)
    assert tiffs(tmp_path / "zip") == tiffs(tmp_path / "folder")
    unpacked = {path.name for path in (tmp_path / "zip" / "unzipped").rglob("*.jp2")}
    assert len(unpacked) == 12
    assert not {name for name in unpacked if "TCI" in name or "B05_60m" in name}


def test_a_second_run_finds_it_done_also_when_it_is_unpacked_again(landscape, tmp_path):
    archive = zipped(landscape / "s2" / NAME, tmp_path / f"{NAME}.zip")
    assert prepare(landscape, archive, tmp_path / "out").exit_code == 0

    again = prepare(landscape, archive, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "unzipped")
    unpacked = prepare(landscape, archive, tmp_path / "out")

    for done in (again, unpacked):
        assert "written now: 0 patches of 0 products; already there: 4 patches of 1 product" in done.stdout


def test_a_root_of_a_zip_knows_the_zip(landscape, tmp_path):
    archive = zipped(landscape / "s2" / NAME, tmp_path / f"{NAME}.zip")
    root = ["--root", str(tmp_path / "root")]
    given = ["--s2", archive, "--s1", landscape / "s1", "--clc", landscape / "clc.gpkg"]

    made = CliRunner().invoke(app, ["prepare", *map(str, given), *root, "--json"])
    again = CliRunner().invoke(app, ["prepare", *map(str, given), *root, "--json"])
    zipped(landscape / "s2" / NAME, archive, level=zipfile.ZIP_DEFLATED)
    changed = CliRunner().invoke(app, ["prepare", *map(str, given), *root])

    assert json.loads(made.stdout)["num_patches"] == 4
    assert json.loads(again.stdout)["published_already"] is True
    assert isinstance(changed.exception, ConflictError)
    assert f"--s2 {archive.name}: was" in str(changed.exception)
    assert not (tmp_path / "root.prepared").exists()


def test_folders_and_zips_are_found_each_product_once(landscape, tmp_path):
    shutil.copytree(landscape / "s2" / NAME, tmp_path / NAME)
    zipped(landscape / "s2" / NAME, tmp_path / f"{NAME.removesuffix('.SAFE')}.zip")
    other = tmp_path / "S2B_MSIL2A_20170614T101031_N9999_R022_T33UUP_20240101T000000.SAFE.zip"
    zipped(landscape / "s2" / NAME, other)
    (tmp_path / "notes.zip").write_bytes(b"")

    assert find_products([tmp_path]) == [tmp_path / NAME, other]
    assert find_products([other]) == [other]
    with pytest.raises(FileNotFoundError, match=r"no \.SAFE product there, and no zip"):
        find_products([landscape / "s1"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:900]), "damaged .*fetch the product", id="cut"),
        pytest.param(lambda path: path.write_bytes(b"PK"), "damaged", id="no zip"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes().replace(b"Level-2A", b"Level-XX", 1)), "damaged .*CRC",
            id="other bytes",
        ),
    ],
)  # fmt: skip
def test_a_damaged_zip_is_refused_and_leaves_nothing(landscape, tmp_path, spoil, message):
    archive = zipped(landscape / "s2" / NAME, tmp_path / f"{NAME}.zip")
    spoil(archive)

    with pytest.raises(SourceError, match=message):
        unzip_products([archive], tmp_path / "out")
    assert not (tmp_path / "out" / NAME).exists()
    zipped(landscape / "s2" / NAME, archive)
    (product,) = unzip_products([archive], tmp_path / "out")
    assert open_safe(product).name == PRODUCT
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]


@pytest.mark.parametrize(
    "names", [[], [f"{NAME}/MTD_MSIL2A.xml", "S2B_x.SAFE/MTD_MSIL2A.xml"]], ids=["none", "two"]
)
def test_a_zip_of_no_one_product_is_refused(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"<x/>")

    with pytest.raises(SourceError, match=rf"holds {len(names)} Sentinel-2 products"):
        unzip_products([tmp_path / "x.zip"], tmp_path / "out")


def test_nothing_is_written_beside_the_product(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(f"{NAME}/MTD_MSIL2A.xml", b"<x/>")
        archive.writestr(f"{NAME}/../../evil.xml", b"<x/>")
        archive.writestr("elsewhere/evil.xml", b"<x/>")

    unzip_products([tmp_path / "x.zip"], tmp_path / "out")

    assert sorted(path.name for path in tmp_path.rglob("*.xml")) == ["MTD_MSIL2A.xml"]


def test_zips_are_no_share_of_a_job_array(landscape, tmp_path):
    archive = zipped(landscape / "s2" / NAME, tmp_path / f"{NAME}.zip")

    refused = prepare(landscape, archive, tmp_path / "out", "--worker-index", "0", "--workers-total", "2")

    assert refused.exit_code == 2
    assert "unzipping" in refused.stderr
