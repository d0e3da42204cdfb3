"""Receipts of finished products: the rows of their patches, what became of their squares, what they were made from.

A receipt is written last; a product that has one is done. It is a parquet file, so that its rows are of the
official types, with the rest as JSON in its metadata.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reben_cloud.errors import ConflictError, SourceError
from reben_cloud.files.clutter import glob_data
from reben_cloud.files.whole import write_whole
from reben_cloud.scenes.rules import Squares

RECEIPTS = ".prepared"
"""Folder of the receipts below the destination; may be deleted when all is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductReport:
    """What became of the squares of one product."""

    product: str
    """Product name without generation time."""
    failed_checks: tuple[str, ...] = ()
    """Quality checks that exclude the whole product."""
    candidates: int = 0
    """Whole squares of the tile."""
    outside: int = 0
    """Left out because they do not lie within the box that is wanted."""
    nodata: int = 0
    """Left out for a zero pixel in some band."""
    not_in_v1: int = 0
    """Left out because v1 has no such square."""
    unlabelled: int = 0
    """Left out because a quarter or more has no class, or no class has its smallest share."""
    without_s1: int = 0
    """Left out because no Sentinel-1 scene covers it."""
    written: int = 0
    """Patches in the folders."""
    already_there: bool = False
    """Whether an earlier run did all that, from the same inputs."""

    @classmethod
    def of(cls, product: str, squares: Squares) -> ProductReport:
        """The report of a product that was cut; a square that is left out counts once, under its first cause."""
        inside, in_v1, labelled = squares.inside, squares.in_v1, squares.labelled
        filled = inside & squares.filled
        return cls(
            product=product,
            candidates=inside.size,
            outside=int((~inside).sum()),
            nodata=int((inside & ~filled).sum()),
            not_in_v1=int((filled & ~in_v1).sum()),
            unlabelled=int((filled & in_v1 & ~labelled).sum()),
            without_s1=int((filled & in_v1 & labelled & ~squares.with_s1).sum()),
            written=int(squares.kept.sum()),
        )

    def __str__(self) -> str:
        before = "already there, " if self.already_there else ""
        if self.failed_checks:
            return f"{self.product}: {before}excluded, {', '.join(self.failed_checks)} not PASSED"
        outside = f"{self.outside:,} outside of the box, " if self.outside else ""
        done = "squares" if self.already_there else "squares written"
        return (
            f"{self.product}: {before}{self.written:,} of {self.candidates:,} {done}; left out: {outside}"
            f"{self.nodata:,} with nodata, {self.not_in_v1:,} not in v1, "
            f"{self.unlabelled:,} unlabelled, {self.without_s1:,} without S1"
        )


def summary(reports: Sequence[ProductReport]) -> str:
    """One line: what was written now, what was there before, what was excluded."""

    def count(chosen: list[ProductReport]) -> str:
        patches = sum(report.written for report in chosen)
        return (
            f"{patches:,} {'patch' if patches == 1 else 'patches'} of "
            f"{len(chosen):,} {'product' if len(chosen) == 1 else 'products'}"
        )

    now = [report for report in reports if not report.already_there]
    before = [report for report in reports if report.already_there]
    excluded = sum(bool(report.failed_checks) for report in reports)
    return f"written now: {count(now)}; already there: {count(before)}; products excluded: {excluded:,}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What a receipt says beside its rows."""

    options: Mapping[str, str]
    """Identity of the options, `CutOptions.identity`."""
    inputs: Mapping[str, str]
    """Identity of the inputs, `CutOptions.inputs_of`."""
    report: ProductReport
    """What became of the squares."""

    def write(self, path: Path, rows: pa.Table) -> None:
        """Write it with the rows of the product's patches, as a whole or not at all."""
        told = {"recipe": dict(self.options), "inputs": dict(self.inputs), "report": asdict(self.report)}
        out = io.BytesIO()
        pq.write_table(
            rows.replace_schema_metadata({name: json.dumps(value) for name, value in told.items()}), out
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, out.getbuffer())


def receipt_path(folder: Path, product: str) -> Path:
    """Where the receipt of a product is, below the destination."""
    return folder / RECEIPTS / f"{product}.parquet"


def list_receipts(folder: Path) -> list[Path]:
    """The receipts below a destination, by product."""
    return glob_data(folder / RECEIPTS, "*.parquet")


def read_receipt(path: Path) -> Receipt:
    """What a receipt says beside its rows.

    Raises:
        ConflictError: If it does not say what the product was made from.
        SourceError: If it is damaged.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        options, inputs, report = (
            json.loads(metadata[name.encode()]) for name in ("recipe", "inputs", "report")
        )
    except KeyError:
        raise ConflictError(
            f"{path}: does not say what the product was made from, an earlier version wrote it; take an empty folder"
        ) from None
    except (pa.ArrowInvalid, json.JSONDecodeError) as error:
        raise SourceError(f"{path}: damaged ({error}); delete it, and the product is made again") from error
    read = ProductReport(**{**report, "failed_checks": tuple(report["failed_checks"])})
    return Receipt(options=options, inputs=inputs, report=replace(read, already_there=True))
