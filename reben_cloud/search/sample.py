"""A sample of what a search finds: how it is asked for, and the columns that it is drawn by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.errors import NotFoundError
from reben_cloud.root import layout
from reben_cloud.root.arrow import values_of
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.query import Balance, Query
from reben_cloud.sampling import Ints
from reben_cloud.search.arguments import SEASONS, parse_balance, parse_count, parse_distance
from reben_cloud.spread import draw, earth_points, seeded_keys

_BALANCED_BY: dict[Balance, str] = {
    "label": layout.LABELS,
    "country": layout.COUNTRY,
    "season": layout.DATETIME,
}
"""What a sample is even over -> the column that says it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """How to draw a sample; `spread.draw` has the rule."""

    num: int
    """Patches to draw, at least 1."""
    seed: int = 0
    """Seed, at least 0."""
    balance: Balance | None = None
    """What it is even over."""
    min_distance_m: float | None = None
    """Least distance between two centres, metres."""

    def draw(self, dataset: Dataset, rows: Ints) -> Ints:
        """The sample of some rows of the table, in their order.

        Raises:
            NotFoundError: If so many cannot be had.
            ValueError: If the dataset does not say what the sample is to be even over.
        """
        table = dataset.patch_table
        members = None if self.balance is None else self._members(dataset, rows, self.balance)
        points = None
        if self.min_distance_m is not None and len(rows):
            box = table.take(rows, [layout.BBOX]).column(layout.BBOX)
            west, south, east, north = (
                values_of(pc.struct_field(box, side)) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            points = earth_points((west + east) / 2, (south + north) / 2)
        keys = seeded_keys(table.take(rows, [layout.ID]).column(layout.ID).to_pylist(), self.seed)
        chosen = draw(keys, self.num, members=members, points=points, min_distance_m=self.min_distance_m or 0)
        if len(chosen) < self.num:
            raise NotFoundError(self._too_few(len(chosen), members, len(rows)))
        return rows[np.sort(chosen)]

    def _members(self, dataset: Dataset, rows: Ints, balance: Balance) -> NDArray[np.bool_]:
        """Which groups each row is in, shape (n, num_groups), groups in an order that the seed shuffles."""
        table, name = dataset.patch_table, _BALANCED_BY[balance]
        if name not in table.names:
            raise ValueError(
                f"balance={balance!r} needs to know the {balance} of each patch, which {dataset.url} does not say"
            )
        column = table.take(rows, [name]).column(name)
        if balance == "label":
            groups = list(dataset.schema.classes.names)
            members = dataset.schema.classes.encode(column).astype(bool)
        elif balance == "season":
            groups, month = list(SEASONS), values_of(pc.month(column))
            members = np.stack([np.isin(month, SEASONS[season]) for season in groups], axis=1)
        else:
            codes = pc.cast(column, pa.string()).combine_chunks().dictionary_encode()
            groups = [group for group in codes.dictionary.to_pylist() if group is not None]
            numbers = pc.fill_null(codes.indices, -1).to_numpy()
            members = numbers[:, None] == np.arange(len(groups))
        return members[:, np.argsort(seeded_keys(groups, self.seed), kind="stable")]

    def _too_few(self, num: int, members: NDArray[np.bool_] | None, num_rows: int) -> str:
        fit = f"{num_rows:,} {'patch fits' if num_rows == 1 else 'patches fit'} the other conditions"
        if members is not None and (none := num_rows - int(members.any(axis=1).sum())):
            fit += f", {none:,} of them without any {self.balance}"
        if self.min_distance_m is not None:
            fit += f", and as this seed draws them {num:,} are at least {self.min_distance_m:,g} m apart"
        way_out = f"sample at most {num:,}" if num else "ask for less"
        if self.min_distance_m is not None:
            way_out += ", or give a smaller min_distance_m"
        return f"a sample of {self.num:,} patches cannot be had: {fit}; {way_out}"


def parse_sample(query: Query) -> Sample | None:
    """The sample that a query asks for, or None.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a value is out of range, or says how to draw a sample where none is asked for.
    """
    num = parse_count(query.sample, "sample")
    seed = parse_count(query.sample_seed, "sample_seed", least=0, without="0")
    balance = parse_balance(query.balance)
    distance = parse_distance(query.min_distance_m, "min_distance_m")
    if num is None:
        how = {"sample_seed": seed, "balance": balance, "min_distance_m": distance}
        if query.share is not None:
            del how["sample_seed"]  # which is that of the share then
        for name in (name for name, value in how.items() if value is not None):
            raise ValueError(f"{name} says how a sample is drawn, and none is asked for: give sample=N too")
        return None
    if query.limit is not None:
        raise ValueError("limit takes the first patches and sample some of all: give one of them")
    return Sample(num=num, seed=0 if seed is None else seed, balance=balance, min_distance_m=distance)
