"""From a raw batch to the image that a model takes, on the device of the batch.

Nearest upsampling, stacking in the order wanted, normalising and flips, for reBEN's bands as ConfigILM
does them; the schema says where in a batch a band is. On a CPU the twofold and sixfold upsampling are the
whole cost, so they are written as copies of doubled pixels; elsewhere PyTorch's own are fast.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np

from reben_cloud.bigearthnet.inputs import BandStatistics, Generation, choose_bands, statistics_of
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import missing_extra
from reben_cloud.schema import BandPlace, Schema
from reben_cloud.torch.records import Stack, has_records, stacks_of

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
    """Neighbouring channels of the image that are one piece of a batch: of an array, or of records."""

    stack: Stack
    """Where the bands are in records."""
    array: str
    """The batch array."""
    first: int | None
    """First band in the array; None if the array is one band, without an axis of bands."""
    channel: int
    """Channel of the image that the first becomes."""
    held_as_bits: torch.dtype | None
    """What the batch's integers are the bits of, where NumPy lacks the dtype."""

    @property
    def num_bands(self) -> int:
        """How many bands."""
        return self.stack.shape[0]

    @property
    def channels(self) -> slice:
        """Channels of the image."""
        return slice(self.channel, self.channel + self.num_bands)

    def is_in(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether a batch has these bands, in either layout."""
        return self.array in batch or self._is_packed(batch)

    def raw(self, batch: Mapping[str, Tensor], samples: slice) -> Tensor:
        """These bands of some samples as they are in the batch, (n, bands, y, x)."""
        if self._is_packed(batch):
            raw = self.stack.of(batch[self.stack.modality][samples])
        elif self.first is None:
            raw = batch[self.array][samples].unsqueeze(1)
        else:
            raw = batch[self.array][samples, self.first : self.first + self.num_bands]
        return raw if self.held_as_bits is None else raw.view(self.held_as_bits)

    def _is_packed(self, batch: Mapping[str, Tensor]) -> bool:
        return has_records(batch, self.stack.modality, self.stack.payload_bytes)


class ModelInput(nn.Module):
    """Raw batch -> image, [B, C, size, size], for either layout of a loader.

    It can be compiled (``torch.compile``), and waits for the device nowhere.

    Args:
        bands: A name of `bands.BAND_SETS` (``S1``, ``RGB``, ``10m_20m``, ``S1_10m_20m``, ``S2``,
            ``ALL``, ...) or band names in the order wanted.
        size: Height and width of the image, pixels; bands of another size are resampled to the
            nearest pixel. By default the size of the schema's finest band, which is 120 for reBEN.
        normalize: ``published`` subtracts the mean of each band over the train split and divides by
            its standard deviation, as the published models expect; None leaves the values as they are
            (digital numbers and dB).
        augment: ``flip`` flips each image of a batch at random, left-right and up-down with a
            chance of one half each (training mode only); None does not. Chance is that of PyTorch's generator
            on the device of the batch.
        dtype: Of the image. Values are normalised in float32, whatever it is, and then rounded: the statistics stay
            float32 also where the module is told to change its dtype.
        memory_format: ``torch.channels_last`` lays the channels of a pixel side by side, as convolutions on a GPU
            like them.
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
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
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
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be one of floating point, got {dtype}")
        if memory_format not in (torch.contiguous_format, torch.channels_last):
            raise ValueError(f"memory_format must be contiguous_format or channels_last, got {memory_format}")
        self.size = size
        """Height and width of the image, pixels."""
        self.normalize = normalize
        """Whether statistics are used."""
        self.augment = augment
        """How training images are changed."""
        self.dtype = dtype
        """Of the image."""
        self.memory_format = memory_format
        """How its channels lie in memory."""
        self._runs = tuple(_runs_of([schema.bands[band] for band in self.bands], schema))
        self._statistics: dict[str, Tensor] = {}
        if normalize is not None:
            found = statistics_of(self.bands, schema=schema, given=statistics)
            self._statistics = {
                "mean": torch.tensor([one.mean for one in found]).view(-1, 1, 1),
                "scale": 1 / torch.tensor([one.std for one in found]).view(-1, 1, 1),
            }
        # Buffers move with the module, but belong to no checkpoint: they are facts, not weights.
        for name, values in self._statistics.items():
            self.register_buffer(name, values.clone(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ModelInput:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in self._statistics.items():  # moved, but never rounded
            setattr(self, name, values.to(self.get_buffer(name).device))
        return self

    def extra_repr(self) -> str:
        """Arguments, for ``print(model)``."""
        return (
            f"bands={','.join(self.bands)}, size={self.size}, normalize={self.normalize}, augment={self.augment}, "
            f"dtype={self.dtype}, memory_format={self.memory_format}"
        )

    def forward(self, batch: Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        """The image of a batch.

        Args:
            batch: Raw batch of a loader, all of it on one device.
            out: Image to write to, [B, C, size, size] of any float dtype on that device; a new one of `dtype` and
                `memory_format` by default. On a CPU a new image of this size costs more than filling it: reuse one.

        Returns:
            [B, C, size, size].

        Raises:
            ValueError: If the batch lacks a modality.
        """
        for run in self._runs:
            if not run.is_in(batch):
                raise ValueError(
                    f"the batch has no {run.array}, which the bands {', '.join(self.bands)} need; "
                    f"it has {', '.join(batch)}: stream the modality too"
                )
        first = self._runs[0].raw(batch, slice(None))
        if out is None:
            shape = (len(first), len(self.bands), self.size, self.size)
            out = torch.empty(shape, dtype=self.dtype, device=first.device, memory_format=self.memory_format)
        if first.device.type != "cpu" or torch.compiler.is_compiling():
            self._assemble(batch, out)
        elif out.dtype == torch.float32 and out.is_contiguous():
            _in_threads(self._assemble_on_cpu, batch, out)
        else:
            image = torch.empty(out.shape)
            _in_threads(self._assemble_on_cpu, batch, image)
            out.copy_(image)
        if self.augment == "flip" and self.training:
            _flip(out)
        return out

    def _assemble(self, batch: Mapping[str, Tensor], out: Tensor) -> None:
        for run in self._runs:
            pixels = self._pixels(batch, run, slice(None))
            if pixels.shape[-1] != self.size:
                pixels = nn.functional.interpolate(pixels, self.size, mode="nearest")
            out[:, run.channels] = pixels

    def _assemble_on_cpu(self, batch: Mapping[str, Tensor], out: Tensor, start: int, stop: int) -> None:
        for first in range(start, stop, _CHUNK):
            samples = slice(first, min(first + _CHUNK, stop))
            for run in self._runs:
                target = out[samples, run.channels]
                native = run.stack.shape[-1]
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
        raw = run.raw(batch, samples)
        if out is None:
            out = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
        out.copy_(raw)
        if self.normalize is not None:
            out.sub_(self.get_buffer("mean")[run.channels]).mul_(self.get_buffer("scale")[run.channels])
        return out


def finest_px(schema: Schema) -> int:
    """Height and width of a schema's finest band, pixels.

    Raises:
        ValueError: If it has no band.
    """
    if not schema.bands:
        raise ValueError(f"{schema.name} has no band: no square image with a pixel size")
    return max(place.size_px for place in schema.bands.values())


def _runs_of(places: Sequence[BandPlace], schema: Schema) -> Iterator[_Run]:
    grouped = groupby(enumerate(places), key=lambda p: (p[1].array.name, p[0] - p[1].position))
    for _, group in grouped:
        (channel, place), *others = group
        modality, position = schema.modality(place.modality), place.position
        # What are neighbours in an array need not be in a payload; as pieces of either they cost the same.
        names = [place.tensor.name, *(other.tensor.name for _, other in others)]
        for stack in stacks_of(modality, names):
            yield _Run(
                stack=stack,
                array=place.array.name,
                first=position if place.array.stacked else None,
                channel=channel,
                held_as_bits=_HELD_AS_BITS.get(place.tensor.dtype),
            )
            channel, position = channel + stack.shape[0], position + stack.shape[0]


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
        # Not the chosen ones alone: how many they are, a device would have to be waited for.
        images.copy_(torch.where(chosen.view(-1, 1, 1, 1), images.flip(axis), images))


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
