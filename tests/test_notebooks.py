"""Every notebook runs from top to bottom on a root in an S3 bucket, and shows something."""

from __future__ import annotations

import ast
import re
import sys
import uuid
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from reben_cloud.build import build, make_plan
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from tests.conftest import REPOSITORY, empty_bucket
from tests.scenes import make_landscape

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
PUBLIC = {"bigearthnet", "grid", "torch"}
"""Modules that a user is meant to import from, next to `reben_cloud` itself."""


PRODUCTS = (
    "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP",  # Austria, summer
    "S2B_MSIL2A_20170824T100019_N9999_R122_T33TWM",
    "S2B_MSIL2A_20170906T101019_N9999_R022_T34VDN",  # Finland
    "S2A_MSIL2A_20170617T113321_N9999_R080_T29UPU",  # Ireland
    "S2B_MSIL2A_20180515T112109_N9999_R037_T29SNC",  # Portugal
    "S2B_MSIL2A_20170831T095029_N9999_R079_T33UXP",  # around Vienna
)
"""What the notebooks look for is in these; all 115 would take most of the time."""


def name_of(path):
    return path.stem


@pytest.fixture(scope="module")
def root(s3_server, tmp_path_factory):
    """A root of 200 patches of a dozen products in a bucket, and the environment that leads there."""
    client, bucket = s3_server.client(), f"reben-{uuid.uuid4().hex[:16]}"
    client.create_bucket(Bucket=bucket)
    url = f"s3://{bucket}/root"
    sample = pd.read_parquet(REPOSITORY / "reben_cloud" / "sources" / "sample_metadata.parquet")
    few = sample[sample["patch_id"].str[:-6].isin(PRODUCTS)]
    path = tmp_path_factory.mktemp("metadata") / "metadata.parquet"
    few.to_parquet(path, index=False)
    source, metadata = open_source("synthetic:200", metadata_paths=[path])
    build(make_plan(source, metadata, open_store(url, s3_server.storage_options)))
    scenes = make_landscape(tmp_path_factory.mktemp("scenes"))
    yield {"REBEN_ROOT": url, "REBEN_SCENES": str(scenes), **s3_server.environment}
    empty_bucket(client, bucket)
    client.delete_bucket(Bucket=bucket)


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs_on_s3(path, root, tmp_path, monkeypatch):
    for name, value in root.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{Path('/usr/bin')}:/bin")
    notebook = nbformat.read(path, as_version=4)

    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o.get("name") == "stderr"], "a notebook that warns looks broken"
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_uses_the_public_interface_only(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        code = re.sub(r"^[!%].*$", "pass", cell.source, flags=re.MULTILINE)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("reben_cloud."):
                assert node.module.split(".")[1] in PUBLIC, node.module
            if isinstance(node, ast.Attribute):
                assert not (node.attr.startswith("_") and not node.attr.startswith("__")), node.attr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_is_kept_with_its_outputs_and_without_traces_of_where_it_ran(path):
    text = path.read_text()

    assert '"image/png"' in text
    assert len(text) < 2_000_000
    assert not re.search(r"/(work|root|home|usr|opt|srv|mnt|Users)/|127\.0\.0\.1|Traceback", text)
