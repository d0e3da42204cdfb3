"""Run the notebooks on a root in an S3 bucket; as a program, keep what they show in ``notebooks/`` (`make notebooks`).

Nothing that is kept tells where it was run: the root has an address without a folder, and the test in
``test_notebooks.py`` looks for the rest.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from reben_cloud.build import build, make_plan
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from tests.conftest import REPOSITORY, ceph
from tests.scenes import make_landscape

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
JPEG_QUALITY = 85


def execute(path: Path, *, folder: Path, environment: Mapping[str, str]) -> nbformat.NotebookNode:
    """The notebook with what it shows, run in `folder` by a kernel that finds this package and its commands."""
    notebook = nbformat.read(path, as_version=4)
    there = {
        **os.environ,
        **environment,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        "IPYTHONDIR": str(folder / "ipython"),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    client = NotebookClient(
        notebook,
        timeout=600,
        startup_timeout=300,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=there)
    return notebook


def shrink_pictures(notebook: nbformat.NotebookNode) -> None:
    """Keep a picture as JPEG where that takes less than half, as it does for patches and not for diagrams."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" not in data:
                continue
            png, jpeg = base64.b64decode(data["image/png"]), io.BytesIO()
            with Image.open(io.BytesIO(png)) as picture:
                picture.convert("RGB").save(jpeg, "JPEG", quality=JPEG_QUALITY, optimize=True)
            if jpeg.tell() < len(png) / 2:
                del data["image/png"]
                data["image/jpeg"] = base64.b64encode(jpeg.getvalue()).decode()


def main() -> None:
    """Run all notebooks, or those whose names are given, and write them back."""
    chosen = [path for path in NOTEBOOKS if not sys.argv[1:] or path.name in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as scratch, ceph() as server:
        server.client().create_bucket(Bucket="bigearthnet")
        url = "s3://bigearthnet/demo"
        source, metadata = open_source("synthetic:600")
        build(make_plan(source, metadata, open_store(url, server.storage_options)))
        scenes = make_landscape(Path(tempfile.mkdtemp(dir=scratch)))
        environment = {
            "REBEN_ROOT": url,
            "REBEN_PUBLISH": "s3://bigearthnet/from-scenes",
            "REBEN_SCENES": str(scenes),
            **server.environment,
        }
        for path in chosen:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            notebook = execute(path, folder=folder, environment=environment)
            shrink_pictures(notebook)
            nbformat.write(notebook, path)
            sys.stdout.write(f"{path.name}: {path.stat().st_size / 1000:,.0f} kB\n")


if __name__ == "__main__":
    main()
