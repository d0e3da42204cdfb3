"""The rows of an embedding matrix that are nearest to a query: all of them looked at, and exactly ordered.

Every row gets a score in float32, with a bound on its rounding error. Only rows that the bound leaves in the race
are scored once more in float64, and those scores decide. Memory is a few megabytes per thread beside the vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vectors: TypeAlias = NDArray[np.float16] | NDArray[np.float32] | NDArray[np.int8]
Metric = Literal["cosine", "dot", "l2"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_PIECE = 1 << 18
"""Numbers of a piece that is scored at once: 1 MB as float32, which stays in a core's cache while it is used."""

_LARGEST = 2.0**120
"""A row's squared length must be less, so that no product of two rows overflows float32."""

_SMALLEST = 2.0**-100
"""A squared length below this has lost bits in float32, and its row has no direction."""

_FINITE_HALF = 2.0**32
"""The square of 65,536: what an infinite half or one that is not a number widens to, at least."""


class UnfitRowError(ValueError):
    """A row cannot be compared with anything."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row} of vectors {reason}; or leave the row out by `candidates`")
        self.row = row
        """Its number, from 0 over all blocks."""
        self.reason = reason
        """What is wrong with it, to go on with after its name."""

    def __reduce__(self) -> tuple[type[UnfitRowError], tuple[int, str]]:
        return UnfitRowError, (self.row, self.reason)


def nearest(
    vectors: Vectors | Iterable[Vectors],
    query: ArrayLike,
    k: int,
    *,
    metric: Metric = "cosine",
    candidates: ArrayLike | None = None,
) -> tuple[Ints, Floats]:
    """The `k` rows nearest to each query, nearest first.

    Exact: rows are compared by scores in float64, and of equal ones the lower row comes first. The answer does not
    depend on how the rows are cut into blocks, nor on the number of cores.

    Args:
        vectors: The embedding of each row, float16, float32 or int8 (n, d); or an iterable of such blocks, one after
            the other, of which one is held at a time.
        query: Embedding (d,), or several (q, d); taken as float32.
        k: How many rows, at least 1. Where there are fewer, all of them.
        metric: ``cosine`` and ``dot`` (the scalar product): larger is nearer; ``l2`` (Euclidean distance): smaller is.
        candidates: The rows to look at, whole numbers (m,) in any order; None: all. A row named twice counts once.

    Returns:
        Rows, int64 (q, min(k, n)), and their scores in the metric, float32 of the same shape; q is 1 for a single
        query.

    Raises:
        ValueError: If shapes do not agree, a candidate does not exist, or a row that is looked at, or a query, has
            a number that is infinite or NaN, is longer than 2**60, or has no direction although the metric is
            ``cosine`` (it is all zeros, or shorter than 2**-50). The message names the first such row, which
            `UnfitRowError` has as a number.
        TypeError: If `vectors` has another dtype.
    """
    question = _Question.of(query, k=k, metric=metric)
    wanted = None if candidates is None else _candidates(candidates)
    best = [_Best(k) for _ in question.queries]
    num_rows = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for block in (vectors,) if isinstance(vectors, np.ndarray) else vectors:
            _check_block(block, question.num_dims)
            rows: Sequence[int] | Ints = range(len(block))
            if wanted is not None:
                inside = slice(*np.searchsorted(wanted, (num_rows, num_rows + len(block))))
                rows = wanted[inside] - num_rows
            floors = [one.floor for one in best]
            shares = _shares(rows, question.num_dims)
            search = partial(_search, question, block, num_rows, floors=floors)
            for found in pool.map(search, shares):
                for one, (places, keys) in zip(best, found, strict=True):
                    one.offer(places, keys)
            num_rows += len(block)
    if wanted is not None and len(wanted) and wanted[-1] >= num_rows:
        raise ValueError(f"candidates: there is no row {wanted[-1]}; vectors has {num_rows:,} rows, from 0")
    ranked = [one.ranked() for one in best]
    places = np.stack([one for one, _ in ranked])
    keys = np.stack([one for _, one in ranked])
    return places, (np.sqrt(-keys) if metric == "l2" else keys).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    """What is looked for. A key says how near a row is, larger is nearer: for ``l2`` the squared distance, negated."""

    queries: Floats
    """(q, d)."""
    squares: Floats
    """Squared lengths of the queries, (q,)."""
    k: int
    metric: Metric

    @classmethod
    def of(cls, query: ArrayLike, *, k: int, metric: Metric) -> _Question:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if metric not in get_args(Metric):
            raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}, got {metric!r}")
        with np.errstate(over="ignore"):
            queries = np.asarray(query, np.float32)
            if queries.ndim not in (1, 2) or 0 in queries.shape:
                raise ValueError(f"query must have the shape (d,) or (q, d), got {queries.shape}")
            queries = np.ascontiguousarray(queries.reshape(-1, queries.shape[-1]))
            squares = np.vecdot(queries, queries)
        if unfit := _first_unfit(queries, squares, metric):
            raise ValueError(f"query {unfit[0]} {unfit[1]}")
        return cls(queries=queries, squares=squares, k=k, metric=metric)

    @property
    def num_dims(self) -> int:
        return int(self.queries.shape[1])

    def bounds(self, rows: Floats, squares: Floats) -> tuple[Floats, Floats]:
        """Below and above what the keys of rows (n, d) are, float32 (n, q) each.

        A product of vectors in float32 errs by less than (d + 1) 2**-24 |x| |q| whatever the order of its sums (Higham,
        Accuracy and Stability of Numerical Algorithms, 2002, section 3.1); twice that covers the steps that follow.
        """
        # Not a product of matrices: with one query it is as fast, and it starts no threads of a BLAS, which wait for
        # each other in turns where cores are shared (measured: 5 to 50 times as long on a busy machine).
        keys = np.vecdot(rows[:, None], self.queries)
        error = np.float32(2 * (self.num_dims + 8) * 2.0**-24)
        ours, theirs = (np.maximum(one, np.float32(_SMALLEST)) for one in (squares[:, None], self.squares))
        match self.metric:
            case "cosine":
                keys /= np.sqrt(ours) * np.sqrt(theirs)
                return keys - error, keys + error
            case "dot":
                off = error * np.sqrt(ours) * np.sqrt(theirs)
            case "l2":
                keys = 2 * keys - squares[:, None] - self.squares
                off = error * (ours + theirs)
        return keys - off, keys + off

    def keys(self, rows: NDArray[np.float64], which: int) -> NDArray[np.float64]:
        """Keys of rows (n, d) for one of the queries; equal rows have equal keys wherever they stand."""
        query = self.queries[which].astype(np.float64)
        keys: NDArray[np.float64]
        match self.metric:
            case "cosine":
                keys = (rows * query).sum(axis=1) / np.sqrt((rows**2).sum(axis=1) * (query**2).sum())
            case "dot":
                keys = (rows * query).sum(axis=1)
            case "l2":
                keys = -((rows - query) ** 2).sum(axis=1)
        return keys


class _Best:
    """The k best of the rows that were offered."""

    def __init__(self, k: int, floor: float = -np.inf) -> None:
        self.floor = np.float64(floor)
        """A row with a smaller key is not among the best."""
        self._k = k
        self._rows = [np.zeros(0, np.int64)]
        self._keys = [np.zeros(0, np.float64)]
        self._num_waiting = 0

    def offer(self, rows: Ints, keys: NDArray[np.float64]) -> None:
        self._rows.append(rows)
        self._keys.append(keys)
        self._num_waiting += len(rows)
        if self._num_waiting >= self._k:  # seldom, where k is large
            _, best = self.ranked()
            if len(best) == self._k:
                self.floor = max(self.floor, best[-1])

    def ranked(self) -> tuple[Ints, NDArray[np.float64]]:
        """Rows and keys, best first, of equal keys the lower row."""
        rows, keys = np.concatenate(self._rows), np.concatenate(self._keys)
        order = np.lexsort((rows, -keys))[: self._k]
        self._rows, self._keys, self._num_waiting = [rows[order]], [keys[order]], 0
        return self._rows[0], self._keys[0]


def _search(
    question: _Question,
    block: Vectors,
    first: int,
    rows: Sequence[int] | Ints,
    floors: list[np.float64],
) -> list[tuple[Ints, NDArray[np.float64]]]:
    """The best of some rows of a block, which begins with row `first` of all: rows and keys for each query."""
    best = [_Best(question.k, floor) for floor in floors]
    size = _piece_rows(question.num_dims)
    wide = np.empty((min(size, len(rows)), question.num_dims), np.float32)
    by_bits = _widens_by_bits(block)
    with np.errstate(over="ignore", invalid="ignore"):  # of unfit rows, which are refused
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            taken = block[part.start : part.stop] if isinstance(part, range) else block[part]
            places = np.asarray(part, np.int64) + first
            floats = _widened(taken, wide[: len(taken)], by_bits=by_bits)
            squares = np.vecdot(floats, floats)
            if unfit := _first_unfit(taken, squares, question.metric):
                raise UnfitRowError(int(places[unfit[0]]), unfit[1])
            lower, upper = question.bounds(floats, squares)
            for which, one in enumerate(best):
                near = np.flatnonzero(upper[:, which] >= one.floor)
                if len(near) > question.k:
                    least = np.partition(lower[near, which], -question.k)[-question.k]
                    near = near[upper[near, which] >= least]
                if len(near):
                    one.offer(places[near], question.keys(taken[near].astype(np.float64), which))
    return [one.ranked() for one in best]


def _piece_rows(num_dims: int) -> int:
    return max(1, _PIECE // num_dims)


def _shares(rows: Sequence[int] | Ints, num_dims: int) -> list[Sequence[int] | Ints]:
    """Rows cut into one run for each core, and fewer where there is little to do."""
    num_pieces = -(-len(rows) // _piece_rows(num_dims))
    num_shares = max(1, min(os.cpu_count() or 1, num_pieces))
    stops = [len(rows) * share // num_shares for share in range(num_shares + 1)]
    return [rows[start:stop] for start, stop in pairwise(stops)]


def _widens_by_bits(block: Vectors) -> bool:
    """Whether halves are widened by `_widened`'s own way: not where this thread flushes subnormal floats to zero."""
    smallest = _widened(np.full(1, 2.0**-24, np.float16), np.empty(1, np.float32), by_bits=True)
    return block.dtype == np.float16 and bool(smallest[0] == 2.0**-24)


def _widened(vectors: Vectors, out: Floats, *, by_bits: bool) -> Floats:
    """Vectors as float32, in `out` where they are of another dtype."""
    if vectors.dtype == np.float32:
        return vectors.view(np.float32)
    if not by_bits:
        np.copyto(out, vectors)
        return out
    # NumPy widens a half in four times the time. Sign, exponent and fraction moved to their places in a float32 are
    # the number times 2**-112, the difference of the exponents' biases; subnormals too. What is infinite or not a
    # number becomes 65,536 or more.
    bits = out.view(np.int32)
    np.copyto(bits, vectors.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)  # without the copies of the sign: 0x8FFFE000
    return np.multiply(out, np.float32(2.0**112), out=out)


def _candidates(candidates: ArrayLike) -> Ints:
    """Rows to look at, rising, each once."""
    rows = np.asarray(candidates)
    if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
        raise ValueError(
            f"candidates must be whole numbers of shape (m,), got {rows.dtype} of shape {rows.shape}"
        )
    rows = np.unique(rows.astype(np.int64))
    if len(rows) and rows[0] < 0:
        raise ValueError(f"candidates: there is no row {rows[0]}; rows count from 0")
    return rows


def _check_block(block: Vectors, num_dims: int) -> None:
    if block.dtype not in (np.float16, np.float32, np.int8):
        raise TypeError(
            f"vectors must be float16, float32 or int8, got {block.dtype}; convert them with astype"
        )
    if block.ndim != 2 or block.shape[1] != num_dims:
        raise ValueError(f"vectors must have the shape (n, {num_dims}) as the query has, got {block.shape}")


def _first_unfit(vectors: Vectors, squares: Floats, metric: Metric) -> tuple[int, str] | None:
    """Which of some vectors (n, d), of these squared lengths (n,), cannot be compared, and why; None: all can."""
    doubtful = ~(squares < _FINITE_HALF)
    if metric == "cosine":
        doubtful |= squares < _SMALLEST
    for at in np.flatnonzero(doubtful).tolist():
        if not np.isfinite(vectors[at]).all():
            return at, "has a number that is infinite or NaN"
        if not squares[at] < _LARGEST:
            return at, "is longer than 2**60; scale the vectors down"
        if squares[at] < _SMALLEST:
            return (
                at,
                "is shorter than 2**-50, and has no direction for a cosine; metric='dot' and 'l2' take it",
            )
    return None
