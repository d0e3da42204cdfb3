"""`tests/gpu/check.py` in its reduced form: what it asks of a GPU, asked of the CPU."""

# ruff: noqa: F811 - a fixture is imported from the tests of the raw loader

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_stream import root  # noqa: F401

pytest.importorskip("timm")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_check_of_a_gpu_runs_on_a_cpu(root, tmp_path):
    result = tmp_path / "result.json"

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.gpu.check",
            "--device",
            "cpu",
            "--small",
            "--root",
            root,
            "--json",
            result,
        ],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())["checks"]
    assert {one["check"].split(",")[0] for one in found} == {
        "images",
        "races",
        "copies",
        "steps",
        "evaluation",
    }
    assert not [one for one in found if one["ok"] is False]
    assert sum(one["ok"] is True for one in found) >= 7
