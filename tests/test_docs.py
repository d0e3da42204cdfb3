"""Every code block of README and docs is run, every page is reachable, and the site builds strictly.

Python blocks of a page run one after the other in one namespace, ``sh`` blocks in bash, both in a
folder that holds ``demo/`` as `make demo` leaves it, with an S3 server's credentials in the
environment. ``text`` blocks are what cannot run here; their commands are parsed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import reben_cloud as rc
from reben_cloud.cli.demo import run_demo
from reben_cloud.sources.archives import ARCHIVES
from tests import hub
from tests.benge import write_benge
from tests.bigearthnet_txt import write_texts
from tests.commands import check_command, command_lines
from tests.conftest import PATIENT_S, REPOSITORY
from tests.official import members, pack
from tests.scenes import make_abroad

DOCS = REPOSITORY / "docs"
BESIDE = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "infra/README.md"]
PAGES = [*(REPOSITORY / name for name in BESIDE), *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BUCKET = "my-bucket"
"""What pages call the reader's bucket; each test has one of its own instead."""


def relative(path):
    return str(path.relative_to(REPOSITORY))


def blocks(page):
    """(language, line number, text) of each code block."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        yield match.group(1), text.count("\n", 0, match.start()) + 1, match.group(2)


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory):
    """What `make demo` leaves behind."""
    folder = tmp_path_factory.mktemp("made") / "demo"
    run_demo(folder)
    return folder


@pytest.fixture(scope="session")
def files_of_others(demo_folder, tmp_path_factory):
    """ben-ge, BigEarthNet.txt and the archive of maps in their own names, about the demo's patches, ben-ge with some
    that only v1 has."""
    folder = tmp_path_factory.mktemp("others")
    official = rc.open(demo_folder / "root").selection.official()
    write_benge(folder / "ben-ge", official, foreign=45)
    write_texts(folder / "BigEarthNet.txt.parquet", official, num_patches=500)
    (folder / ARCHIVES["map"]).write_bytes(pack(members("map", official)))
    return folder


@pytest.fixture(scope="session")
def abroad(tmp_path_factory):
    """Products, radar and land cover of two countries, for a dataset of one's own."""
    return make_abroad(tmp_path_factory.mktemp("abroad"))


@pytest.fixture(scope="session")
def hosted_files(demo_folder, tmp_path_factory):
    """The demo's patches as the hub has BigEarthNet: an LMDB without maps, its metadata beside it."""
    folder = tmp_path_factory.mktemp("hosted") / "lmdb"
    rc.open(demo_folder / "root").search().export_lmdb(folder, modalities=["s2", "s1"])
    found = {"BENv2.lmdb/data.mdb": folder / "data.mdb"}
    return found | {path.name: path for path in folder.glob("metadata*.parquet")}


@pytest.fixture
def hubs(hosted_files, tmp_path, monkeypatch):
    """A hub that has the data sets which pages name."""
    names = ("hackelle/BigEarthNetV2-LMDB", "hackelle/BigEarthNetV2-Lithuania-Summer-LMDB")
    with hub.serve(hub.Hub(repo=names[0], others=names[1:])) as served:
        served.commit(hosted_files)
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("REBEN_CACHE", str(tmp_path / "cache"))
        yield


@pytest.fixture
def workplace(demo_folder, files_of_others, abroad, s3_bucket, tmp_path, monkeypatch):
    """A folder with the demo, what others have for its patches, and scenes, and an S3 server in the environment."""
    (tmp_path / "demo").symlink_to(demo_folder)
    for path in (*files_of_others.iterdir(), *abroad.iterdir()):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MPLBACKEND", "agg")
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(lang in ("python", "sh") for lang, _, _ in blocks(p))], ids=relative
)
@pytest.mark.usefixtures("workplace", "hubs")
def test_code_blocks_run(page, s3_bucket):
    if page.parent.name == "infra":
        pytest.skip("needs a Kubernetes cluster: its commands are read, not run")
    namespace = {"__name__": "__main__"}
    for language, line, text in blocks(page):
        text = text.replace(BUCKET, s3_bucket.name)
        if language == "python":
            exec(compile("\n" * line + text, page, "exec"), namespace)
        elif language == "sh":
            run_shell(text, f"{relative(page)}:{line}")


def run_shell(text, where):
    """Run a block in bash, but for `make`, whose targets are only checked to be there."""
    targets = re.findall(r"^make (\w+)", text, re.MULTILINE)
    for target in targets:
        subprocess.run(["make", "-n", "-C", REPOSITORY, target], check=True, stdout=subprocess.DEVNULL)
    rest = "\n".join(line for line in text.splitlines() if not line.startswith("make "))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", rest],
        capture_output=True,
        text=True,
        timeout=2 * PATIENT_S,
        check=False,
    )
    assert done.returncode == 0, f"{where}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_that_are_only_shown_exist(page):
    for language, _, text in blocks(page):
        if language in ("text", "sh"):
            for arguments in command_lines(text):
                check_command(arguments)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_no_block_hides_behind_another_language(page):
    # Those of `py` need large packages, and are run by the tests of this page where they are there.
    more = ("py",) if page.name == "others.md" else ()
    for language, line, _ in blocks(page):
        assert language in ("python", "sh", "text", "toml", "json", "", *more), f"{relative(page)}:{line}"


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=quiet, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "format" / "index.html").is_file()
    assert "reben-cloud bucket create" in (tmp_path / "reference" / "cli" / "index.html").read_text()


def test_every_page_is_in_the_navigation():
    def pages(node):
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict):
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from pages(child)

    config = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())

    assert sorted(pages(config["nav"])) == sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md"))


def test_the_readme_tree_names_every_module():
    tree = (REPOSITORY / "README.md").read_text().split("## What is where")[1].split("docs/")[0]
    named = set(re.findall(r"^  (\w+(?:\.py|/))", tree, re.MULTILINE))

    package = REPOSITORY / "reben_cloud"
    there = {p.name for p in package.glob("*.py") if p.name != "__init__.py"}
    there |= {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").is_file()}

    assert there <= named
    assert not {
        name for name in named - there if (package / name.rstrip("/")).parent == package and name not in there
    }


def test_the_architecture_page_and_its_drawing_name_every_room():
    package = REPOSITORY / "reben_cloud"
    rooms = {p.stem for p in package.glob("*.py") if p.name != "__init__.py"}
    rooms |= {p.name for p in package.iterdir() if (p / "__init__.py").is_file()}

    named = re.findall(r"^\| `(\w+)` \|", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    drawn = re.findall(r'<text class="m"[^>]*>(\w+)<', (DOCS / "img" / "rooms.svg").read_text())

    assert sorted(named) == sorted(rooms)
    assert sorted(drawn) == sorted(rooms)


def test_the_code_of_the_start_page_fits_beside_its_menus():
    """At 1280 pixels a line has room for 80 characters; the rest would have to be scrolled to."""
    for _, line, text in blocks(DOCS / "index.md"):
        for number, code in enumerate(text.splitlines()):
            assert len(code) <= 80, f"docs/index.md, line {line + number + 1}: {len(code)} characters"
