"""A Sentinel-1 GRD product before it is processed: its name, where it lies, and whether its images are its own."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path, PurePosixPath

import shapely

from reben_cloud.bigearthnet import grid
from reben_cloud.errors import SourceError
from reben_cloud.files.clutter import glob_data, is_clutter
from reben_cloud.scenes.sentinel1 import POLARIZATIONS

_GRD = re.compile(
    rf"(?P<scene>{grid.SCENE_PATTERN})_{grid.TIME_PATTERN}_(?P<orbit>\d{{6}})_(?P<datatake>[0-9A-F]{{6}})_\w+\.(SAFE|zip)"
)
_MEASUREMENT = re.compile(
    r"(?P<satellite>s1[a-d])-iw-grd-(?P<polarization>v[vh])-(?P<start>\d{8}t\d{6})-\d{8}t\d{6}-(?P<orbit>\d{6})"
    r"-(?P<datatake>[0-9a-f]{6})-\d{3}(?:-cog)?\.tiff"
)
_SAME_START_S = 2  # the next slice of a datatake begins 25 s later


def check_grd(path: Path, *, folder_only: bool = False) -> str:
    """The scene's name, after a look at whether the images inside are those that the product's name says.

    Args:
        path: The ``.SAFE`` folder, or its zip.
        folder_only: Take no zip.

    Raises:
        SourceError: If it is not a GRD product of VV and VH, lacks an image, or holds another product's.
    """
    product = _GRD.fullmatch(path.name)
    if product is None or not (path.is_dir() if folder_only else path.exists()):
        form = "no .SAFE folder of a" if folder_only else "no"
        raise SourceError(f"{path}: {form} Sentinel-1 IW GRDH product with VV and VH (1SDV)")
    scene = product["scene"]
    of_product = scene[:3], product["orbit"], product["datatake"]
    found = set()
    for name in _measurements(path):
        image = _MEASUREMENT.fullmatch(name)
        if image is None:
            continue
        found.add(image["polarization"].upper())
        of_image = tuple(image[part].upper() for part in ("satellite", "orbit", "datatake"))
        later = grid.parse_time(image["start"]) - grid.parse_time(scene[17:])
        if of_image != of_product or abs(later.total_seconds()) > _SAME_START_S:
            raise SourceError(
                f"{path.name}: holds {name}, an image of another product (other time or orbit); are two "
                "products mixed?"
            )
    lacking = [polarization for polarization in POLARIZATIONS if polarization not in found]
    if lacking:
        raise SourceError(
            f"{path.name}: no image of {' and '.join(lacking)} in measurement/; the product is incomplete, "
            "fetch it again"
        )
    return scene


_COORDINATES = re.compile(r"<gml:coordinates>([^<]*)</gml:coordinates>")


def read_outline(path: Path) -> shapely.Polygon | None:
    """Where a GRD product lies, longitude and latitude, by its manifest; None where that does not say."""
    text = _manifest(path)
    match = _COORDINATES.search(text)
    if match is None:
        return None
    try:
        corners = [tuple(map(float, pair.split(",")))[::-1] for pair in match[1].split()]
        return shapely.Polygon(corners) if len(corners) > 2 else None
    except ValueError as error:
        raise SourceError(
            f"{path}: its manifest.safe has no coordinates where it says so ({error})"
        ) from error


def _manifest(path: Path) -> str:
    """The text of a product's manifest; empty without one."""
    if path.is_dir():
        file = path / "manifest.safe"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if PurePosixPath(name).name == "manifest.safe"]
        return archive.read(names[0]).decode(errors="replace") if names else ""


def _measurements(path: Path) -> list[str]:
    """Names of the images in a GRD product, a folder or a zip."""
    if path.is_dir():
        return [file.name for file in glob_data(path, "measurement/*.tiff")]
    try:
        with zipfile.ZipFile(path) as archive:
            members = [PurePosixPath(name) for name in archive.namelist()]
    except zipfile.BadZipFile as error:
        raise SourceError(f"{path}: damaged ({error}); fetch the product again") from error
    return [
        member.name
        for member in members
        if member.parent.name == "measurement"
        and member.suffix == ".tiff"
        and not any(map(is_clutter, member.parts))
    ]
