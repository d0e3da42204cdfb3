"""What this machine brings: versions, extras, cores, disk, open files."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from reben_cloud.checks.finding import Finding
from reben_cloud.wording import size_text

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "geo": ("rasterio", "tifffile", "geopandas", "matplotlib"),
    "lmdb": ("lmdb",),
    "s3fs": ("s3fs",),
    "stac": ("stac-fastapi-api", "cql2"),
    "train": ("timm", "torchmetrics"),
    "dask": ("distributed",),
}
"""What each extra brings that its commands cannot do without."""

_FREE_BYTES = 5 * 2**30
_OPEN_FILES = 1024


def look_at_versions() -> Iterator[Finding]:
    """Versions of Python and of the packages, and which extras are installed."""
    version = platform.python_version()
    yield Finding(level="ok", subject="Python", detail=f"{version} on {platform.platform(terse=True)}")
    names = ("reben-cloud", "zarr", "obstore", "fsspec", "pyarrow")
    yield Finding(
        level="ok", subject="packages", detail=", ".join(f"{n} {_version(n) or 'absent'}" for n in names)
    )
    if (s3fs := _version("s3fs")) and s3fs.startswith("0."):
        yield Finding(
            level="problem",
            subject="s3fs",
            detail=f"{s3fs} is of 2020: pip chose it to please a newer boto3",
            advice="pip install 's3fs>=2026.1'",
        )
    for extra, packages in EXTRAS.items():
        absent = [name for name in packages if _version(name) is None]
        if absent:
            yield Finding(
                level="note",
                subject=f"extra {extra}",
                detail=f"{', '.join(absent)} not installed",
                advice=f"pip install 'reben-cloud[{extra}]', if you need it",
            )
        elif extra == "train" and (why := _why_not("reben_cloud.training.models")):
            yield Finding(level="warning", subject=f"extra {extra}", detail=why)
        else:
            yield Finding(
                level="ok", subject=f"extra {extra}", detail=", ".join(f"{n} {_version(n)}" for n in packages)
            )


def _why_not(module: str) -> str:
    """Why a module cannot be imported, or nothing."""
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        return str(error)
    return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def look_at_resources(folder: Path) -> Iterator[Finding]:
    """Cores, free space around `folder`, and how many files may be open."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(level="ok", subject="cores", detail=f"{num_cores} for this process")
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    free = f"{size_text(usage.free)} free in {folder.absolute()}"
    if usage.free < _FREE_BYTES:
        yield Finding(
            level="warning",
            subject="disk",
            detail=free,
            advice="a root of the whole dataset takes about 300 GB; give caches and exports another disk",
        )
    else:
        yield Finding(level="ok", subject="disk", detail=free)
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _OPEN_FILES:
        yield Finding(
            level="warning",
            subject="open files",
            detail=f"{soft} allowed",
            advice=f"ulimit -n {min(hard, 65536)}",
        )
