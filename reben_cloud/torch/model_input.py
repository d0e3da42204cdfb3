"""From a raw batch to the float32 image that a model takes, on the device of the batch.

Nearest upsampling, stacking in the order wanted, normalising and flips, for reBEN's bands as ConfigILM
does them; the schema says where in a batch a band is. On a CPU the twofold and sixfold upsampling are the
whole cost, so they are written as copies of doubled pixels; elsewhere PyTorch's own are fast.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np

from reben_cloud.bigearthnet.inputs import BandStatistics, Generation, choose_bands, statistics_of
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import missing_extra
from reben_cloud.schema import BandPlace, Schema

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "torch") from error

_CHUNK = 32
"""Samples assembled together on a CPU: few calls (fewer samples), values still in its cache (more)."""

_HELD_AS_BITS = {
    "bfloat16": torch.bfloat16,
    "float8_e5m2": torch.float8_e5m2,
    "float8_e4m3fn": torch.float8_e4m3fn,
}


class _Run(NamedTuple):
    """Neighbouring bands of one batch array that are also neighbours in the image."""

    array: str
    """The batch array."""
    first: int | None
    """First band in the array; None if the array is one band, without an axis of bands."""
    channel: int
    """Channel of the image that it becomes."""
    num_bands: int
    """How many bands."""
    held_as_bits: torch.dtype | None
    """What the batch's integers are the bits of, where NumPy lacks the dtype."""


class ModelInput(nn.Module):
    """Raw batch -> image, float32 [B, C, size, size].

    Args:
        bands: A name of `bands.BAND_SETS` (``S1``, ``RGB``, ``10m_20m``, ``S1_10m_20m``, ``S2``,
            ``ALL``, ...) or band names in the order wanted.
        size: Height and width of the image, pixels; bands of another size are resampled to the
            nearest pixel. By default the size of the schema's finest band, which is 120 for reBEN.
        normalize: ``published`` subtracts the mean of each band over the train split and divides by
            its standard deviation, as the published models expect; None leaves the values as they are
            (digital numbers and dB).
        augment: ``flip`` flips each image of a batch at random, left-right and up-down with a
            chance of one half each (training mode only); None does not.
        models: Generation of published models whose order of bands a name means.
        schema: What the batches hold.
        statistics: Mean and standard deviation of bands by name, before those published of reBEN's
            bands; only `normalize` needs them.

    Raises:
        ValueError: If an argument is unknown, or a band has no statistics.
    """

    def __init__(
        self,
        bands: str | Sequence[str] = "ALL",
        *,
        size: int | None = None,
        normalize: Literal["published"] | None = "published",
        augment: Literal["flip"] | None = None,
        models: Generation = "v0.2.0",
        schema: Schema = REBEN,
        statistics: Mapping[str, BandStatistics] | None = None,
    ) -> None:
        super().__init__()
        self.bands = choose_bands(bands, schema=schema, models=models)
        """Names of the channels."""
        size = finest_px(schema) if size is None else size
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        if normalize not in ("published", None):
            raise ValueError(f"normalize must be 'published' or None, got {normalize!r}")
        if augment not in ("flip", None):
            raise ValueError(f"augment must be 'flip' or None, got {augment!r}")
        self.size = size
        """Height and width of the image, pixels."""
        self.normalize = normalize
        """Whether statistics are used."""
        self.augment = augment
        """How training images are changed."""
        self._runs = _runs_of([schema.bands[band] for band in self.bands])
        if normalize is not None:
            found = statistics_of(self.bands, schema=schema, given=statistics)
            # Buffers move with the module, but belong to no checkpoint: they are facts, not weights.
            for run in self._runs:
                mine = found[run.channel : run.channel + run.num_bands]
                mean = torch.tensor([one.mean for one in mine]).view(-1, 1, 1)
                scale = 1 / torch.tensor([one.std for one in mine]).view(-1, 1, 1)
                self.register_buffer(f"mean_{run.channel}", mean, persistent=False)
                self.register_buffer(f"scale_{run.channel}", scale, persistent=False)

    def extra_repr(self) -> str:
        """Arguments, for ``print(model)``."""
        return f"bands={','.join(self.bands)}, size={self.size}, normalize={self.normalize}, augment={self.augment}"

    def forward(self, batch: Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        """The image of a batch.

        Args:
            batch: Raw batch of a loader, all of it on one device.
            out: Image to write to, float32 [B, C, size, size] on that device; a new one by default.
                On a CPU a new image of this size costs more than filling it: reuse one.

        Returns:
            float32 [B, C, size, size].

        Raises:
            ValueError: If the batch lacks a modality.
        """
        for run in self._runs:
            if run.array not in batch:
                raise ValueError(
                    f"the batch has no {run.array}, which the bands {', '.join(self.bands)} need; "
                    f"it has {', '.join(batch)}: stream the modality too"
                )
        first = batch[self._runs[0].array]
        shape = (len(first), len(self.bands), self.size, self.size)
        if out is None:
            out = torch.empty(shape, dtype=torch.float32, device=first.device)
        if first.device.type == "cpu":
            _in_threads(self._assemble_on_cpu, batch, out)
        else:
            self._assemble(batch, out)
        if self.augment == "flip" and self.training:
            _flip(out)
        return out

    def _assemble(self, batch: Mapping[str, Tensor], out: Tensor) -> None:
        for run in self._runs:
            pixels = self._pixels(batch, run, slice(None))
            if pixels.shape[-1] != self.size:
                pixels = nn.functional.interpolate(pixels, self.size, mode="nearest")
            out[:, run.channel : run.channel + run.num_bands] = pixels

    def _assemble_on_cpu(self, batch: Mapping[str, Tensor], out: Tensor, start: int, stop: int) -> None:
        for first in range(start, stop, _CHUNK):
            samples = slice(first, min(first + _CHUNK, stop))
            for run in self._runs:
                target = out[samples, run.channel : run.channel + run.num_bands]
                native = batch[run.array].shape[-1]
                factor = self.size // native
                if native == self.size:
                    self._pixels(batch, run, samples, out=target)
                elif factor and factor % 2 == 0 and factor * native == self.size:
                    _repeat_pixels(self._pixels(batch, run, samples), target, factor)
                else:
                    target.copy_(
                        nn.functional.interpolate(
                            self._pixels(batch, run, samples), self.size, mode="nearest"
                        )
                    )

    def _pixels(
        self, batch: Mapping[str, Tensor], run: _Run, samples: slice, out: Tensor | None = None
    ) -> Tensor:
        """Normalised pixels of a run in native resolution, float32 (n, count, y, x)."""
        raw = batch[run.array][samples]
        if run.held_as_bits is not None:
            raw = raw.view(run.held_as_bits)
        raw = raw.unsqueeze(1) if run.first is None else raw[:, run.first : run.first + run.num_bands]
        if out is None:
            out = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
        out.copy_(raw)
        if self.normalize is not None:
            out.sub_(self.get_buffer(f"mean_{run.channel}")).mul_(self.get_buffer(f"scale_{run.channel}"))
        return out


def finest_px(schema: Schema) -> int:
    """Height and width of a schema's finest band, pixels.

    Raises:
        ValueError: If it has no band.
    """
    if not schema.bands:
        raise ValueError(f"{schema.name} has no band: no square image with a pixel size")
    return max(place.size_px for place in schema.bands.values())


def _runs_of(places: Sequence[BandPlace]) -> tuple[_Run, ...]:
    grouped = groupby(enumerate(places), key=lambda p: (p[1].array.name, p[0] - p[1].position))
    runs = []
    for _, group in grouped:
        (channel, place), *others = group
        runs.append(
            _Run(
                array=place.array.name,
                first=place.position if place.array.stacked else None,
                channel=channel,
                num_bands=1 + len(others),
                held_as_bits=_HELD_AS_BITS.get(place.tensor.dtype),
            )
        )
    return tuple(runs)


def _repeat_pixels(pixels: Tensor, target: Tensor, factor: int) -> None:
    """Nearest upsampling by an even factor as contiguous copies.

    Two equal float32 neighbours are one 64-bit word: the pixel's bits times 2**32 + 1. A row of such
    words, each repeated factor / 2 times, is then copied `factor` times.
    """
    n, count, height, _ = pixels.shape
    words = np.multiply(pixels.numpy().view(np.uint32), np.uint64(2**32 + 1), dtype=np.uint64)
    row = torch.from_numpy(words.view(np.int64))
    if factor > 2:
        row = row.unsqueeze(-1).expand(-1, -1, -1, -1, factor // 2).reshape(n, count, height, -1)
    words_of_target = target.view(torch.int64)
    rows = words_of_target.as_strided(
        (n, count, height, factor, words_of_target.shape[-1]),
        (*words_of_target.stride()[:2], factor * words_of_target.stride(2), *words_of_target.stride()[2:]),
        words_of_target.storage_offset(),
    )
    rows.copy_(row.unsqueeze(3).expand_as(rows))


def _flip(images: Tensor) -> None:
    """Flip each image at random in both directions, in place."""
    for axis in (-1, -2):
        chosen = torch.rand(len(images), device=images.device) < 0.5
        images[chosen] = images[chosen].flip(axis)


# -- threads -----------------------------------------------------------------------------------------

_here = threading.local()
_pools: dict[int, ThreadPoolExecutor] = {}


def work_alone() -> None:
    """Keep OpenMP from splitting what this thread does: a team for each thread is ten times slower.

    ``torch.set_num_threads`` would also change the threads that train; OpenMP's own setting does not.
    """
    if not hasattr(_here, "alone"):
        torch.get_num_threads()  # PyTorch sets this thread's number on first use: let it do so before
        with suppress(AttributeError):  # a PyTorch that is built without OpenMP
            ctypes.CDLL(None).omp_set_num_threads(1)
        _here.alone = True


def _in_threads(
    assemble: Callable[[Mapping[str, Tensor], Tensor, int, int], None],
    batch: Mapping[str, Tensor],
    out: Tensor,
) -> None:
    """Assemble equal parts of a batch on as many threads as PyTorch would use."""
    workers = torch.get_num_threads()
    if workers == 1 or len(out) < 2 * _CHUNK:
        assemble(batch, out, 0, len(out))
        return
    pool = _pools.get(os.getpid())
    if pool is None:
        pool = _pools[os.getpid()] = ThreadPoolExecutor(workers, "reben-input", initializer=work_alone)
    part = -(-len(out) // workers)
    inference = (
        torch.is_inference_mode_enabled()
    )  # of this thread alone; a tensor made in it is written to in it

    def assemble_part(start: int) -> None:
        with torch.inference_mode(inference):
            assemble(batch, out, start, min(start + part, len(out)))

    futures = [pool.submit(assemble_part, start) for start in range(0, len(out), part)]
    for future in futures:
        future.result()
