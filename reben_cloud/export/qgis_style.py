"""A style that QGIS takes for a raster when it opens one: ``NAME.qml`` beside ``NAME.tif``.

For maps of classes whose codes need more than 8 bits: a colour table has 65,536 entries there, for QGIS to read and
for GDAL to write into every file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

ENDING = ".qml"
"""What a style's name ends with, in place of the raster's ending."""


class Look(NamedTuple):
    """How a value is shown."""

    color: str
    """``#rrggbb``."""
    name: str
    """In the legend."""


def style_of(looks: Mapping[int, Look]) -> bytes:
    """The style of a raster with one band of codes; other codes are transparent.

    Args:
        looks: Code -> how it is shown, in the order of the legend.
    """
    entries = "".join(
        f'        <paletteEntry value="{code}" color="{look.color}" alpha="255" label={quoteattr(look.name)}/>\n'
        for code, look in looks.items()
    )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis version="3.0.0" styleCategories="Symbology">\n'
        "  <pipe>\n"
        '    <rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">\n'
        f"      <colorPalette>\n{entries}      </colorPalette>\n"
        "    </rasterrenderer>\n"
        "  </pipe>\n"
        "</qgis>\n"
    ).encode()
