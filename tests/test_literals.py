"""What stands in one place only: paths and columns of a root, and the names that are reBEN's alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from reben_cloud.bigearthnet.about import ABOUT
from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.root import layout

PACKAGE = Path(__file__).parent.parent / "reben_cloud"

ROOMS = ("formats", "root", "stream", "search", "export", "catalog", "checks", "views", "serve")
"""Rooms that know schemas, and no dataset by name."""

NAMES = frozenset({*REBEN.modality_names, *BANDS})
"""Modalities and bands of reBEN."""

PATHS = frozenset(
    {
        layout.MANIFEST,
        layout.EXPORT_MANIFEST,
        layout.OBJECTS,
        layout.PATCHES,
        layout.CATALOG,
        layout.collection(ABOUT.collection),
        layout.JOURNAL,
    }
)
"""Objects of a root whose paths are constants."""

BEGINNINGS = (layout.PREFIX, f"{layout.SHARDS}/", "zarr/", "../../zarr/", f"{ABOUT.collection}/")
"""How columns with the prefix begin, and other paths."""


def literals(code):
    """(Line, text) of every string, and of the constant parts of f-strings, but for what is documentation."""
    tree = ast.parse(code)
    # Docstrings, and the strings below assignments and fields.
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.lineno, node.value


def is_name(text):
    return text in NAMES


def is_path(text):
    return text in PATHS or text.startswith(BEGINNINGS) or ".zarr/" in text or text.endswith(".zarr")


def found(path, is_wrong):
    return [f"line {line}: {text!r:.60}" for line, text in literals(path.read_text()) if is_wrong(text)]


def files(rooms):
    paths = [path for room in rooms for path in sorted((PACKAGE / room).rglob("*.py"))]
    return [path.relative_to(PACKAGE).as_posix() for path in paths]


EVERYWHERE = [name for name in files(["."]) if name != "root/layout.py"]


@pytest.mark.parametrize("name", files(ROOMS))
def test_rooms_that_know_schemas_name_nothing_of_rebens(name):
    wrong = found(PACKAGE / name, is_name)

    assert not wrong, f"{name} names what is reBEN's: {'; '.join(wrong)}"


@pytest.mark.parametrize("name", EVERYWHERE)
def test_only_the_layout_spells_paths_and_columns(name):
    wrong = found(PACKAGE / name, is_path)

    assert not wrong, f"{name} spells what root/layout.py has: {'; '.join(wrong)}"


@pytest.mark.parametrize(
    ("code", "count"),
    [
        pytest.param('"""s1"""\nx = 1\n"""map"""', 0, id="documentation"),
        pytest.param('if m == "map": f("B8A")', 2, id="names"),
        pytest.param('title = "the map of s2"', 0, id="a sentence"),
    ],
)
def test_names_are_told_from_documentation(code, count):
    assert sum(is_name(text) for _, text in literals(code)) == count


@pytest.mark.parametrize(
    ("code", "count"),
    [
        pytest.param('"""zarr/x"""', 0, id="documentation"),
        pytest.param('p = f"zarr/{product}.zarr/{path}"', 2, id="parts of an f-string"),
        pytest.param('t.column("reben:split"), f"reben:{m}_xxh3"', 2, id="columns"),
        pytest.param('store.get("manifest.json")', 1, id="a constant path"),
        pytest.param('raise E(f"{url}: manifest.json is damaged")', 0, id="a message"),
    ],
)
def test_paths_are_told_from_messages(code, count):
    assert sum(is_path(text) for _, text in literals(code)) == count
