"""Statistics of what a layer holds, gathered in parts that are put together in one order: the same for good."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.root.arrow import mask_of, names_array
from reben_cloud.schema import Buffer, Modality, TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Count, mean and spread of some values."""

    count: int = 0
    """How many they are."""
    mean: float = 0.0
    """Their mean."""
    squares: float = 0.0
    """Sum of the squared differences from the mean."""
    least: float = math.inf
    """The smallest."""
    most: float = -math.inf
    """The largest."""

    @classmethod
    def of(cls, values: NDArray[Any], *, fill: float | None) -> Moments:
        """Those of an array, but for values that are not finite and those that stand for no data."""
        wide = values.astype(np.float64).reshape(-1)
        there = np.isfinite(wide)
        if fill is not None:
            there &= wide != fill
        wide = wide[there]
        if not wide.size:
            return cls()
        mean = float(wide.mean())
        return cls(
            count=wide.size,
            mean=mean,
            squares=float(((wide - mean) ** 2).sum()),
            least=float(wide.min()),
            most=float(wide.max()),
        )

    def and_those(self, other: Moments) -> Moments:
        """Those of both together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + apart * other.count / count,
            squares=self.squares + other.squares + apart**2 * self.count * other.count / count,
            least=min(self.least, other.least),
            most=max(self.most, other.most),
        )

    def to_json(self) -> dict[str, Any]:
        """As it stands in a receipt."""
        return asdict(self) if self.count else {}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Moments:
        """What `to_json` wrote."""
        return cls(**value)

    def summary(self) -> dict[str, float]:
        """As it stands in ``layer.json``."""
        return {
            "mean": self.mean,
            "std": math.sqrt(self.squares / self.count),
            "min": self.least,
            "max": self.most,
            "count": self.count,
        }


def is_measured(tensor: TensorSpec) -> bool:
    """Whether mean and spread of a tensor mean something: not those of bits that NumPy cannot read as numbers."""
    return tensor.dtype != "bool" and (tensor.storage.kind == "f" or "float" not in tensor.dtype)


def moments_of(modality: Modality, payload: Buffer) -> dict[str, Moments]:
    """Tensor -> its moments in a payload, of tensors that have any."""
    tensors = modality.decode(payload)
    return {
        tensor.name: Moments.of(tensors[tensor.name], fill=tensor.fill)
        for tensor in modality.tensors
        if is_measured(tensor)
    }


def together(parts: Iterable[Moments]) -> Moments:
    """Those of all parts."""
    found = Moments()
    for part in parts:
        found = found.and_those(part)
    return found


def counted(split: pa.ChunkedArray[Any]) -> NDArray[np.bool_]:
    """Which patches count in statistics, by their split: those for training, or all where none is; (n,)."""
    in_train = mask_of(pc.equal(split.cast(pa.string()), names_array(["train"])[0]))
    return in_train if in_train.any() else np.ones(len(in_train), np.bool_)


def summed(parts: Iterable[Mapping[str, Moments]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Name -> statistics of all parts together; names without any value are left out."""
    total = dict.fromkeys(names, Moments())
    for part in parts:
        total = {name: moments.and_those(part.get(name, Moments())) for name, moments in total.items()}
    return {name: moments.summary() for name, moments in total.items() if moments.count}
