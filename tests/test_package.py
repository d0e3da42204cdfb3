"""What is published installs into a clean environment and works there, from wheel and from sdist."""

import ast
import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions

import pytest

import reben_cloud
from tests.conftest import PATIENT_S, REPOSITORY

PACKAGE = REPOSITORY / "reben_cloud"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A wheel and an sdist, built without the network: the build backend is here already."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def tracked_files():
    """Files of the package that git has; none outside a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "reben_cloud"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    return {name for name in listed if name and (REPOSITORY / name).exists()}


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(dist):
    (wheel,) = dist.glob("*.whl")

    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("reben_cloud/")}

    assert tracked_files() <= names
    assert "reben_cloud/py.typed" in names


@pytest.mark.slow
def test_the_wheel_says_what_it_is(dist):
    (wheel,) = dist.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (path,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]

    metadata = email.message_from_bytes(archive.read(path))

    assert metadata["Name"] == "reben-cloud"
    assert metadata["Version"] == reben_cloud.__version__
    assert metadata["License-Expression"] == "MIT"
    extras = set(metadata.get_all("Provides-Extra"))
    assert {"torch", "geo", "lmdb", "stac", "train", "dask", "dev", "all"} <= extras


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(dist, tmp_path):
    (sdist,) = dist.glob("*.tar.gz")
    (wheel,) = dist.glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()

    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "out", folder],
        check=True,
        capture_output=True,
    )

    (again,) = (tmp_path / "out").glob("*.whl")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_a_clean_environment_builds_and_reads_a_root(dist, tmp_path):
    (wheel,) = dist.glob("*.whl")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile"]  # what is imported is compiled then
    subprocess.run([*install, "-c", REPOSITORY / "constraints.txt", wheel], check=True, timeout=2 * PATIENT_S)
    command = python.parent / "reben-cloud"
    root = tmp_path / "root"

    def run(*arguments, expect=0):
        done = subprocess.run([*arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    run(command, "build", "synthetic:12", root)
    assert "12 patches" in run(command, "info", root)
    assert "extra torch" in run(command, "doctor", root)
    code = f"import reben_cloud as rc; ds = rc.open({str(root)!r}); print(ds.open_zarr(ds.products[0]).sizes)"
    assert "patch" in run(python, "-c", code)
    # What an extra brings is named by the error that misses it.
    said = run(python, "-c", "import reben_cloud.formats.lmdb", expect=1)
    assert "pip install 'reben-cloud[lmdb]'" in said


def test_versions_agree():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    citation = (REPOSITORY / "CITATION.cff").read_text()

    assert project["version"] == reben_cloud.__version__
    assert f"version: {reben_cloud.__version__}" in citation
    assert f"## {reben_cloud.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_what_is_imported_is_required():
    pytest.importorskip("torch")  # and with it every other extra: a module is looked up where it is installed
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    required = {name_of(requirement) for requirement in wanted}
    brought = {"botocore": "boto3"}  # part of it in all but name
    ours = {"reben_cloud", "_typeshed"}  # the latter is of every type checker, and never imported
    distributions = packages_distributions()

    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in {name.split(".")[0] for name in names} - ours - sys.stdlib_module_names:
                found = {
                    brought.get(d, d).lower().replace("_", "-") for d in distributions.get(module, [module])
                }
                assert found & required, f"{path.name} imports {module}, which no requirement brings"


def name_of(requirement):
    return re.split(r"[>=<\[; ]", requirement)[0].lower().replace("_", "-")


def test_every_requirement_is_pinned_for_the_tests():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]

    assert {name_of(requirement) for requirement in wanted} - {"reben-cloud"} <= pinned
