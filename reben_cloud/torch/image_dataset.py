"""`ImageDataset`: a selection in the form of torchgeo's datasets, for what was written for these."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.inputs import choose_bands
from reben_cloud.errors import missing_extra
from reben_cloud.root.selection import Selection
from reben_cloud.torch.map_targets import MapTargets, map_array_of
from reben_cloud.torch.model_input import ModelInput
from reben_cloud.torch.patch_dataset import PatchDataset, Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

try:
    import torch
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "torch") from error

_RGB = ("B04", "B03", "B02")


class ImageDataset(PatchDataset[Sample]):
    """Samples with ``image``, ``label`` and ``mask``, and `plot`: what torchgeo calls a ``NonGeoDataset``.

    A sample is ``image``, [bands, size, size] float32, digital numbers and dB or normalised, and ``label``, [classes]
    int64 of 0 and 1; with `mask` also ``mask``, [size, size] int64, the number of each pixel's class, and
    `MapTargets.IGNORED` (-1) where it has none. Classes are in the order of the schema, which for BigEarthNet is
    alphabetical, as in ConfigILM and in published models; torchgeo's own BigEarthNet has that of the paper.

    Samplers, workers and requests are as for `PatchDataset`.

    Args:
        selection: What to read, in its order.
        bands: As for `ModelInput`: a name of a set or names of bands, in the order wanted.
        size: Height and width, pixels; by default those of the finest band of the dataset.
        normalize: ``published`` or None, as for `ModelInput`; None leaves digital numbers and dB.
        mask: Whether samples have the map of classes, which is read besides.
        transforms: Called with each sample, as torchgeo's datasets do.
        fetch_threads: As for `PatchDataset`, as is all that follows.
        cache_dir: Folder for whole shards of a remote root.
        cache_bytes: Most bytes in that folder; None for no bound.
        memory_bytes: Most bytes of whole shards that each process keeps in its memory.

    Raises:
        NotFoundError: If the selection is empty.
        TypeError: If `selection` is no selection.
        ValueError: If an argument is out of range, or the dataset lacks a band, or the map.
    """

    def __init__(
        self,
        selection: Selection,
        *,
        bands: str | Sequence[str] = "ALL",
        size: int | None = None,
        normalize: Literal["published"] | None = None,
        mask: bool = False,
        transforms: Callable[[Sample], Sample] | None = None,
        fetch_threads: int = 8,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        memory_bytes: int = 0,
    ) -> None:
        schema = selection.dataset.schema
        self.bands = choose_bands(bands, schema=schema, models="v0.2.0")
        """Names of the channels."""
        wanted = {schema.bands[band].modality for band in self.bands}
        self._map = map_array_of(schema) if mask else None
        wanted |= {m.name for m in schema.modalities if self._map in {array.name for array in m.arrays}}
        super().__init__(
            selection,
            modalities=[name for name in schema.modality_names if name in wanted],
            fetch_threads=fetch_threads,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            memory_bytes=memory_bytes,
        )
        self.transform = transforms
        self._image = ModelInput(self.bands, size=size, normalize=normalize, schema=schema)
        self._targets = MapTargets(schema.classes, size=self._image.size) if mask else None
        self._colors = schema.classes.colors
        self.classes = schema.classes.names
        """Names of the classes, in the order of ``label`` and by the numbers of ``mask``."""

    def _prepare(self, batch: Sample) -> Sample:
        sample: Sample = {"image": self._image(batch), "label": batch["labels"].long()}
        if self._targets is not None and self._map is not None:
            sample["mask"] = self._targets(batch[self._map])
        return sample

    def plot(self, sample: Sample, *, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """A sample as a picture with the names of its labels, and beside it its mask in the colours of the classes.

        Red, green and blue if it has these bands, else its first band in grey; between the 2nd and the 98th percentile
        of the picture's own values.

        Args:
            sample: A sample of this dataset; ``prediction``, of the form of ``label`` or ``mask`` or probabilities in
                [0, 1], is shown too.
            show_titles: Whether to name labels.
            suptitle: A title above these.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise missing_extra("matplotlib", "geo") from error
        is_rgb = set(_RGB) <= set(self.bands)
        channels = [self.bands.index(band) for band in _RGB] if is_rgb else [0]
        pixels = sample["image"][channels].float().numpy().transpose(1, 2, 0)
        low, high = np.percentile(pixels, (2, 98))
        maps = {key: sample[key] for key in ("mask", "prediction") if key in sample and sample[key].ndim == 2}
        figure = Figure(figsize=(4 + 4 * len(maps), 4), layout="constrained")
        axes, *others = figure.subplots(1, 1 + len(maps), squeeze=False)[0]
        axes.imshow(np.clip((pixels - low) / max(high - low, 1e-6), 0, 1), cmap=None if is_rgb else "gray")
        axes.axis("off")
        if show_titles:
            told = [
                f"{key}: {self._names(sample[key])}"
                for key in ("label", "prediction")
                if key in sample and key not in maps
            ]
            axes.set_title("\n".join(told), fontsize="small", wrap=True)
        for beside, (key, numbers) in zip(others, maps.items(), strict=True):
            beside.imshow(self._in_colors(numbers.numpy()), interpolation="nearest")
            beside.axis("off")
            if show_titles:
                beside.set_title(key, fontsize="small")
        if suptitle is not None:
            figure.suptitle(suptitle)
        return figure

    def _in_colors(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Red, green and blue of numbers of classes, (y, x, 3); black where there is none, grey without colours."""
        count = len(self.classes)
        greys = [(255 * (n + 1) // count,) * 3 for n in range(count)]
        colors = [tuple(bytes.fromhex(color[1:])) for color in self._colors] or greys
        return np.array([*colors, (0, 0, 0)], np.uint8)[np.where(numbers < 0, count, numbers)]

    def _names(self, chosen: torch.Tensor) -> str:
        return ", ".join(
            name for name, value in zip(self.classes, chosen.tolist(), strict=True) if value > 0.5
        )
