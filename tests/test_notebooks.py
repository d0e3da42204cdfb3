"""Every notebook runs from top to bottom on a root in an S3 bucket, and shows something."""

from __future__ import annotations

import ast
import base64
import io
import re
import uuid

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from reben_cloud.build import build, make_plan
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from tests.conftest import REPOSITORY, empty_bucket
from tests.notebooks import NOTEBOOKS, execute, shrink_pictures
from tests.scenes import make_landscape

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
    published = f"s3://{bucket}/published"
    yield {
        "REBEN_ROOT": url,
        "REBEN_SCENES": str(scenes),
        "REBEN_PUBLISH": published,
        **s3_server.environment,
    }
    empty_bucket(client, bucket)
    client.delete_bucket(Bucket=bucket)


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs_on_s3(path, root, tmp_path):
    notebook = execute(path, folder=tmp_path, environment=root)
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

    assert re.search('"image/(png|jpeg)"', text)
    assert len(text) < 600_000
    assert not re.search(r"/(work|root|home|usr|opt|srv|mnt|tmp|var|Users)/|127\.0\.0\.1|Traceback", text)


def test_a_picture_of_patches_is_kept_as_jpeg_and_a_diagram_as_it_is():
    rng = np.random.default_rng(0)
    smooth = np.repeat(128 + np.cumsum(rng.normal(0, 3, (120, 120, 1)), axis=0), 3, axis=2)
    line = np.full((120, 120, 3), 255.0)
    line[60] = 0
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(outputs=[shown(smooth), shown(line)])]
    )

    shrink_pictures(notebook)

    patches, diagram = (output.data for output in notebook.cells[0].outputs)
    assert set(patches) == {"image/jpeg"}
    with Image.open(io.BytesIO(base64.b64decode(patches["image/jpeg"]))) as kept:
        assert np.abs(np.asarray(kept, dtype=float) - smooth.clip(0, 255)).mean() < 8
    assert diagram == shown(line).data


def shown(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    data = {"image/png": base64.b64encode(file.getvalue()).decode()}
    return nbformat.v4.new_output("display_data", data=data)
