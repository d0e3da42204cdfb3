"""Which Sentinel-1 scenes may go with a Sentinel-2 product, and in which order: the nearest in time first."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

import pyproj

from reben_cloud.bigearthnet import grid
from reben_cloud.errors import SourceError
from reben_cloud.scenes.sentinel1 import Scene

Direction = Literal["ascending", "descending"]
"""Which way the satellite flew."""

_FIRST_ORBIT = {"S1A": 73, "S1B": 27}
"""Absolute orbit that had the relative number 1; a cycle has 175."""

_NUM_ORBITS = 175
_WITH_ORBIT = re.compile(rf"(?P<scene>{grid.SCENE_PATTERN})_{grid.TIME_PATTERN}_(?P<orbit>\d{{6}})")


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneChoice:
    """What a scene must be to go with a product; all that there are by default, as in the paper."""

    max_gap_days: float | None = None
    """Greatest time between the two, days."""
    direction: Direction | None = None
    """Which way the satellite flew."""
    relative_orbit: int | None = None
    """Relative orbit, 1 to 175."""

    def __post_init__(self) -> None:
        if self.max_gap_days is not None and not self.max_gap_days >= 0:
            raise ValueError(f"the greatest gap must be 0 days or more, got {self.max_gap_days}")
        if self.direction not in (None, *get_args(Direction)):
            raise ValueError(f"the direction is {' or '.join(get_args(Direction))}, got {self.direction!r}")
        if self.relative_orbit is not None and not 1 <= self.relative_orbit <= _NUM_ORBITS:
            raise ValueError(f"a relative orbit lies in [1, {_NUM_ORBITS}], got {self.relative_orbit}")

    def identity(self) -> dict[str, str]:
        """What tells it from other choices; nothing of that of all."""
        said = {
            "greatest gap": None if self.max_gap_days is None else f"{self.max_gap_days:g} days",
            "orbit direction": self.direction,
            "relative orbit": self.relative_orbit,
        }
        return {f"Sentinel-1 {name}": str(value) for name, value in said.items() if value is not None}

    def takes_orbit(self, file_name: str) -> bool:
        """Whether a file or product of this name has the relative orbit that is wanted.

        Raises:
            SourceError: If its name does not say its orbit, or whose numbers are not known here.
        """
        if self.relative_orbit is None:
            return True
        match = _WITH_ORBIT.match(file_name)
        if match is None or match["scene"][:3] not in _FIRST_ORBIT:
            raise SourceError(
                f"{file_name}: its relative orbit is not known; the name must go on like its GRD product's "
                "(S1A_IW_GRDH_1SDV_<start>_<stop>_<orbit>), and be of S1A or S1B"
            )
        first = _FIRST_ORBIT[match["scene"][:3]]
        return (int(match["orbit"]) - first) % _NUM_ORBITS + 1 == self.relative_orbit

    def ordered(
        self, scenes: Iterable[Scene], *, time: datetime, epsg: int, bounds: tuple[float, float, float, float]
    ) -> list[Scene]:
        """Those that may go with a product, in the order in which they are tried.

        A scene that was made for several zones comes first on the grid of the product's.

        Args:
            scenes: All that there are.
            time: Start of the Sentinel-2 acquisition.
            epsg: CRS of the tile.
            bounds: West, south, east and north of the tile, metres.
        """
        taken = [
            scene
            for scene in scenes
            if (
                self.max_gap_days is None
                or abs(scene.time - time).total_seconds() <= 86_400 * self.max_gap_days
            )
            and (
                self.direction is None or direction_of(scene.time, epsg=epsg, bounds=bounds) == self.direction
            )
        ]
        return sorted(taken, key=lambda s: (abs(s.time - time), s.name, not s.is_in(epsg), s.files))


ALL_SCENES = SceneChoice()
"""Every scene that there is."""


def direction_of(time: datetime, *, epsg: int, bounds: tuple[float, float, float, float]) -> Direction:
    """Which way Sentinel-1 flew over a place at a time.

    It goes along the line of dusk and dawn: up at about 18 hours of solar time and down at about 6, within three
    hours up to 80 degrees of latitude (local time of the ascending node, Sentinel-1 mission guide).

    Args:
        time: UTC.
        epsg: CRS of the place.
        bounds: West, south, east and north, metres.
    """
    west, south, east, north = bounds
    longitude, _ = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform(
        (west + east) / 2, (south + north) / 2
    )
    hours = time.hour + time.minute / 60 + time.second / 3600 + longitude / 15
    return "ascending" if hours % 24 >= 12 else "descending"
