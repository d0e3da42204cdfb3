"""Windows of a remote GeoTIFF: its header is read, then the blocks that a window touches, and no other byte.

Any tiled or striped GeoTIFF will do; of a cloud-optimised one the header stands at its beginning. Blocks are decoded
by imagecodecs, which refuses a damaged one where the compression has a checksum, as deflate has.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import SourceError, missing_extra
from reben_cloud.scenes.items.reading import Reading, RemoteFile, Span, near_spans

_HEADER_BYTES = 16 * 1024
"""The header is read in pieces of this size; that of a whole tile takes one."""

_THREADS = 8
"""Requests of one image at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Where the pixels of a raster lie."""

    epsg: int | None
    """CRS; None where the file does not say it by a code."""
    left: float
    """West edge, metres."""
    top: float
    """North edge, metres."""
    pixel: tuple[float, float]
    """Width and height of a pixel, metres."""
    shape: tuple[int, int]
    """Height and width, pixels."""


class Cog:
    """One remote GeoTIFF of one band.

    Args:
        href: Its URL, or a path.
        reading: How it is read.

    Raises:
        FileNotFoundError: If there is no such object.
        SourceError: If it is not a GeoTIFF of one band with its place.
        StorageError: If the store refuses, or fails after its retries.
    """

    def __init__(self, href: str, reading: Reading) -> None:
        try:
            import tifffile
        except ImportError as error:
            raise missing_extra("tifffile", "geo", error) from error
        self._file = RemoteFile(href, reading)
        self.url = self._file.url
        """Where it is."""
        try:
            # tifffile parses what it was given; of the pages only the first, at full resolution.
            with tifffile.TiffFile(io.BufferedReader(_Reader(self._file)), name=self.url) as tiff:
                self._page: Any = tiff.pages.first
                tags: dict[str, Any] = dict(self._page.geotiff_tags or {})
                nodata = self._page.tags.get("GDAL_NODATA")
                self._spans = [
                    Span(*span)
                    for span in zip(self._page.dataoffsets, self._page.databytecounts, strict=True)
                ]
        except (tifffile.TiffFileError, ValueError, IndexError, KeyError, TypeError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"{self.url}: not a readable GeoTIFF ({type(error).__name__}: {error}); the object is damaged or "
                "something else"
            ) from error
        if self._page.samplesperpixel != 1 or len(self._page.shape) != 2:
            raise SourceError(f"{self.url}: must have one band, is of shape {self._page.shape}")
        self.dtype: np.dtype[Any] = np.dtype(self._page.dtype)
        """Of its pixels."""
        self.nodata = None if nodata is None else float(str(nodata.value).strip("\0 "))
        """Value of pixels without data; None where it does not say."""
        self.grid = _grid(tags, self._page.shape, self.url)
        """Where its pixels lie."""

    def read(self, rows: slice, columns: slice) -> NDArray[Any]:
        """The pixels of a window.

        Args:
            rows: From where to where, in [0, height].
            columns: Likewise.

        Returns:
            The file's dtype, of the window's shape; 0 in blocks that the file does not have.

        Raises:
            SourceError: If a block is damaged, or lies beyond the object's end.
            ChangedError: If the object was written again meanwhile.
            StorageError: If the store refuses, or fails after its retries.
        """
        window = np.zeros((max(0, rows.stop - rows.start), max(0, columns.stop - columns.start)), self.dtype)
        if not window.size:
            return window
        numbers = [n for n in self._touching(rows, columns) if self._spans[n].length]
        groups = near_spans([self._spans[n] for n in numbers])

        def fill(group: Sequence[int]) -> None:
            blocks = [numbers[position] for position in group]
            for number, data in zip(
                blocks, self._file.read_near([self._spans[n] for n in blocks]), strict=True
            ):
                self._place(number, data, window, rows.start, columns.start)

        with ThreadPoolExecutor(min(_THREADS, max(1, len(groups)))) as pool:
            try:
                for _ in pool.map(fill, groups):
                    pass
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return window

    def _touching(self, rows: slice, columns: slice) -> list[int]:
        """Numbers of the blocks that a window touches."""
        height, width = self._block
        across = -(-self.grid.shape[1] // width)
        return [
            y * across + x
            for y in range(rows.start // height, -(-rows.stop // height))
            for x in range(columns.start // width, -(-columns.stop // width))
        ]

    @property
    def _block(self) -> tuple[int, int]:
        """Height and width of a block: a tile, or a strip."""
        if self._page.is_tiled:
            return int(self._page.tilelength), int(self._page.tilewidth)
        return int(self._page.rowsperstrip), self.grid.shape[1]

    def _place(self, number: int, data: memoryview, window: NDArray[Any], row: int, column: int) -> None:
        """Decode a block and put what of it lies in the window there."""
        try:
            decoded, (_, _, top, left, _), _ = self._page.decode(bytes(data), number)
        except (RuntimeError, ValueError) as error:  # of imagecodecs
            raise SourceError(
                f"{self.url}: block {number} is damaged ({str(error) or type(error).__name__}); it may have been "
                "damaged where it lies, or on the way to the cache: try again without --cache-dir"
            ) from error
        block = decoded[0, :, :, 0]
        first_y, first_x = max(row, top), max(column, left)
        stop_y = min(row + window.shape[0], top + block.shape[0])
        stop_x = min(column + window.shape[1], left + block.shape[1])
        window[first_y - row : stop_y - row, first_x - column : stop_x - column] = block[
            first_y - top : stop_y - top, first_x - left : stop_x - left
        ]


def _grid(tags: dict[str, Any], shape: tuple[int, int], url: str) -> Grid:
    """From GeoTIFF's keys."""
    scale, tie = tags.get("ModelPixelScale"), tags.get("ModelTiepoint")
    if scale is None or tie is None or len(tie) < 6:
        raise SourceError(f"{url}: does not say where its pixels lie (ModelPixelScale, ModelTiepoint)")
    column, row, _, x, y, _ = tie[:6]
    if tags.get("GTRasterTypeGeoKey") == _PIXEL_IS_POINT:  # the place is that of a pixel's centre
        column, row = column + 0.5, row + 0.5
    code = tags.get("ProjectedCSTypeGeoKey")
    return Grid(
        epsg=None if code is None or int(code) == _USER_DEFINED else int(code),
        left=x - column * scale[0],
        top=y + row * scale[1],
        pixel=(float(scale[0]), float(scale[1])),
        shape=(int(shape[0]), int(shape[1])),
    )


_PIXEL_IS_POINT = 2
"""GeoTIFF's code of rasters whose coordinates are those of centres."""

_USER_DEFINED = 32_767
"""GeoTIFF's code of a CRS that is written out."""


class _Reader(io.RawIOBase):
    """A remote file as tifffile reads one: read from and sought in."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at = file, 0
        self._pieces: dict[int, memoryview] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._file.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        number, offset = divmod(self._at, _HEADER_BYTES)
        if number not in self._pieces:
            self._pieces[number] = self._file.read(Span(number * _HEADER_BYTES, _HEADER_BYTES))
        part = self._pieces[number][offset : offset + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)
