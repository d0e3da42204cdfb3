"""Numbers in words, and what a command says at its end."""

import subprocess
import sys
import textwrap

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from reben_cloud.cli import app
from reben_cloud.wording import WIDTH, counted, size_text, wrapped
from tests import official
from tests.conftest import PATIENT_S


def run(*arguments, **environment):
    return CliRunner().invoke(app, [str(a) for a in arguments], env=environment)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1_000, "1.00 kB"),
        (99_949, "99.9 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_234_567, "1.23 MB"),
        (305_000_000_000, "305 GB"),
        (5_000_000_000_000_000, "5,000 TB"),
    ],
)
def test_sizes_are_in_the_unit_that_fits(nbytes, text):
    assert size_text(nbytes) == text


def test_counts_have_their_number():
    assert [counted(n, "patch", "patches") for n in (0, 1, 2000)] == ["0 patches", "1 patch", "2,000 patches"]
    assert counted(2, "shard") == "2 shards"


def test_rows_fit_a_terminal_and_keep_commands_and_parts_whole():
    parts = [f"group-{n} {n:,} in 1 shard" for n in range(12)]
    command = f"`reben-cloud layer maps Reference_Maps.tar.zst {'x' * 60} LAYER`"

    lines = list(wrapped([("groups", parts), ("lacks", f"maps, which {command} adds")]))

    assert any(command in line for line in lines)
    assert all(len(line) <= WIDTH for line in lines if command not in line)
    assert all(any(part in line for line in lines) for part in parts)
    assert [line[:15].strip() for line in lines if line[:15].strip()] == ["groups", "lacks"]


def test_a_build_says_whether_it_was_new_continued_or_there(tmp_path):
    root = tmp_path / "root"

    new = run("build", "synthetic:4", root)
    again = run("build", "synthetic:4", root)
    (root / "manifest.json").unlink()
    continued = run("build", "synthetic:4", root)

    assert new.stdout.startswith("published 4 patches at ")
    assert "continued" not in new.stdout
    assert again.stdout.startswith("already there, nothing to do: 4 patches at ")
    assert "(continued: 8 of 8 tasks were done before)" in continued.stdout
    assert "build: 0 of 8\nbuild: 8 of 8 in 0:00:00\n" in continued.stderr


def test_catalogs_indexes_and_layers_say_that_they_were_there(tmp_path):
    table = official.table_of(6)
    official.write_archives(tmp_path / "zst", table, ["map"])
    pq.write_table(table, tmp_path / "metadata.parquet")
    run("build", "synthetic:6", tmp_path / "root", "--modality", "s2")
    run("export", tmp_path / "root", tmp_path / "lmdb")
    commands = [
        ("catalog", tmp_path / "metadata.parquet", tmp_path / "catalog"),
        ("index", tmp_path / "lmdb", tmp_path / "index"),
        (
            "layer",
            "maps",
            tmp_path / "zst",
            tmp_path / "root",
            tmp_path / "maps",
            "--scratch",
            tmp_path / "s",
        ),
    ]

    for command in commands:
        new, again = run(*command), run(*command)
        assert (new.exit_code, again.exit_code) == (0, 0), new.output
        assert "already" not in new.stdout
        assert again.stdout.startswith("already there, nothing to do: ")

    told = run("layer", "info", tmp_path / "root").exception
    assert "is a root and not a layer: `reben-cloud info" in str(told)


def test_a_build_from_archives_says_first_where_it_unpacks_them(tmp_path):
    official.write_archives(tmp_path / "zst", official.table_of(4))

    said = run("build", tmp_path / "zst", tmp_path / "root", "--scratch", tmp_path / "scratch").stderr

    text = f"archives are unpacked first: 1.22 MB in {tmp_path / 'scratch'}"
    assert text in said
    assert said.index(text) < said.index("unpack: 0 of 12")


def test_a_found_table_fits_the_terminal(tmp_path):
    run("build", "synthetic:8", tmp_path / "root")

    narrow = run("search", tmp_path / "root", COLUMNS="80").stdout.splitlines()
    wide = run("search", tmp_path / "root", COLUMNS="130").stdout.splitlines()

    assert max(map(len, narrow)) <= 80
    assert max(map(len, wide)) <= 130
    assert len(narrow) == 2 * 8 + 1
    assert len(wide) == 8 + 1
    assert len({line.index("Z  ") for line in wide[:-1]}) == 1, "columns are aligned"


SCRIPT = """
from reben_cloud.build import build, open_plan
{guard}build(open_plan("synthetic:3", "root")[0], workers=2)
"""


@pytest.mark.slow  # three processes import the package
@pytest.mark.parametrize("from_stdin", [False, True], ids=["file", "stdin"])
def test_workers_of_a_script_without_a_guard_name_the_cause(from_stdin, tmp_path):
    code = textwrap.dedent(SCRIPT.format(guard=""))
    (tmp_path / "script.py").write_text(code)

    ended = subprocess.run(
        [sys.executable, "-" if from_stdin else "script.py"],
        cwd=tmp_path,
        input=code if from_stdin else None,
        capture_output=True,
        text=True,
        timeout=PATIENT_S,
        check=False,
    )

    assert ended.returncode == 1
    assert 'if __name__ == "__main__":' in ended.stderr.splitlines()[-1]
    assert "memory" not in ended.stderr.splitlines()[-1]


@pytest.mark.slow  # three processes import the package
def test_workers_of_a_script_with_a_guard_build(tmp_path):
    code = SCRIPT.format(guard='if __name__ == "__main__":\n    ')
    (tmp_path / "script.py").write_text(code)

    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True, timeout=PATIENT_S)

    assert (tmp_path / "root" / "manifest.json").exists()
