"""Sentinel-2 products that come as zips: what is needed of them, unpacked once into SAFE folders.

Members keep the time that the zip gives them, so that a product which is unpacked again is the same input.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.errors import SourceError
from reben_cloud.files.clutter import is_clutter

_IMAGE = re.compile(r"_(?P<what>B\w{2}|SCL|AOT|WVP|TCI)_(?P<resolution>\d{2})m\.jp2$")
_MAIN = re.compile(r"MTD_MSIL(1C|2A)\.xml")


def unzip_products(zips: Sequence[Path], folder: Path) -> list[Path]:
    """The SAFE folders of zipped products, in order; those that are there from an earlier run are left as they are.

    Of a Level-2A product only metadata, quality data, the scene classification and each band at its own resolution are
    unpacked: about 700 MB.

    Args:
        zips: Zips with one product each.
        folder: Where the SAFE folders go.

    Raises:
        FileNotFoundError: If there is no such zip.
        SourceError: If a zip is damaged, or does not hold one product.
    """
    return [_unzip(path, folder) for path in zips]


def _unzip(path: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                member
                for member in archive.infolist()
                if not member.is_dir() and not any(map(is_clutter, PurePosixPath(member.filename).parts))
            ]
            name = _product_in(members, path)
            target = folder / name
            if target.exists():
                return target
            scratch = folder / f".running-{name}"
            shutil.rmtree(scratch, ignore_errors=True)
            for member in members:
                if _is_needed(member.filename, name):
                    made = Path(archive.extract(member, scratch))
                    moment = time.mktime((*member.date_time, 0, 0, -1))
                    os.utime(made, (moment, moment))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{path}: damaged ({error}); fetch the product again") from error
    (scratch / name).rename(target)
    shutil.rmtree(scratch)
    return target


def _product_in(members: Sequence[zipfile.ZipInfo], path: Path) -> str:
    """Name of the only SAFE folder in a zip."""
    found = {
        parts[0]
        for member in members
        if len(parts := PurePosixPath(member.filename).parts) == 2
        and parts[0].endswith(".SAFE")
        and _MAIN.fullmatch(parts[1])
    }
    if len(found) != 1:
        raise SourceError(
            f"{path}: holds {len(found)} Sentinel-2 products (.SAFE with its metadata), must be one"
        )
    return found.pop()


def _is_needed(member: str, product: str) -> bool:
    parts = PurePosixPath(member).parts
    if parts[0] != product or ".." in parts:
        return False
    image = _IMAGE.search(member)
    if image is None:
        return True  # of a Level-1C product everything: sen2cor asks for it
    if image["what"] == "SCL":
        return image["resolution"] == "20"
    band = BANDS.get(image["what"])
    return band is not None and int(image["resolution"]) == band.resolution_m
