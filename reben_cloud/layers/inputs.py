"""The files that a layer is made of, known again by a making that goes on, and watched while one lasts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import xxhash

from reben_cloud.errors import NotFoundError, SourceError
from reben_cloud.files.sketch import sketch_some
from reben_cloud.layers.raster_files import import_rasterio


class InputFiles:
    """Files of this machine in one state; what lies elsewhere has none.

    Args:
        path: The raster or folder that the user gave, for messages; names are below it or beside it.
        names: The files, relative to the folder.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path = path
        self._names = sorted(names)
        self._folder = path if path.is_dir() else path.parent

    @classmethod
    def of_raster(cls, raster: str) -> InputFiles:
        """Those that a raster is read from: of a VRT also its sources, of a Zarr store all.

        Args:
            raster: Its path, or a URL.
        """
        path = Path(raster)
        if path.is_dir():
            return cls(path, [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()])
        if not path.is_file():
            return cls(path, [])
        with import_rasterio().open(path) as dataset:
            files = {path, *(path.parent / name for name in dataset.files)}
        return cls(path, [os.path.relpath(file, path.parent) for file in files if file.is_file()])

    @cached_property
    def state(self) -> str:
        """What tells them from others, 16 hexadecimal digits: names, sizes and times of change of all, and bytes.

        The bytes are those of `sketch_some`. Asked for the first time, it is looked at; later it is what it was.
        """
        return self._state_now()

    def require_unchanged(self) -> None:
        """See that nobody wrote to them since `state` was looked at.

        Raises:
            SourceError: If somebody did.
            NotFoundError: If one of them is gone.
        """
        if self._state_now() != self.state:
            raise SourceError(
                f"{self._path} changed while a layer was made of it; remove what was begun "
                "(reben-cloud layer remove), and make it again"
            )

    def _state_now(self) -> str:
        files = [self._folder / name for name in self._names]
        digest = xxhash.xxh3_64()
        try:
            for name, file in zip(self._names, files, strict=True):
                found = os.stat(file)
                digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
            digest.update(sketch_some(files).encode())
        except FileNotFoundError as error:
            raise NotFoundError(f"{error.filename}: no such file; a layer is made of it") from error
        return digest.hexdigest()
