"""The page of messages quotes messages that there are, and every how-to says what it takes."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
HEADINGS = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
HOWTOS = sorted((ROOT / "docs" / "howto").glob("*.md"))


@pytest.fixture(scope="module")
def literals():
    """Every string of the package, f-strings without what is filled in."""
    found = []
    for path in (ROOT / "reben_cloud").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [n.value if isinstance(n, ast.Constant) else "…" for n in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_quoted_message_is_one_of_the_package(heading, literals):
    pattern = re.compile(".*".join(map(re.escape, heading.split("…"))), re.DOTALL)

    assert any(pattern.search(text) for text in literals), f"no message has {heading!r}"


def test_the_page_has_messages():
    assert len(HEADINGS) >= 20
    assert len(set(HEADINGS)) == len(HEADINGS)


@pytest.mark.parametrize("path", HOWTOS, ids=lambda path: path.stem)
def test_a_how_to_says_what_it_takes(path):
    (said,) = re.findall(r"^!!! note \"Time and size\"\n\n((?:    .+\n)+)", path.read_text(), re.MULTILINE)

    assert "whole dataset" in said
    assert re.search(r"\b2 GB\b", said)
