"""What the page asks of many patches: which fit a condition that it cannot judge itself, their ids, and files of them.

The page holds the footprints of all patches and filters them in the browser. Sets of patches travel as bits, one a row
of the table, lowest bit first.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from reben_cloud.catalog.terms import PARQUET_TYPE
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.metadata import rfc3339
from reben_cloud.root.selection import Selection
from reben_cloud.search.output import render
from reben_cloud.serve.lanes import Rows
from reben_cloud.serve.results import Results

MAX_LISTED = 100
"""Most patches that the page lists at a time."""

_MEDIA_TYPES = {"ids": "text/plain; charset=utf-8", "parquet": PARQUET_TYPE}


class Conditions(BaseModel):
    """Conditions of a search that need more than the footprints; see `Dataset.search`."""

    model_config = ConfigDict(extra="forbid")

    cql2: str | None = None
    s1_datetime: str | None = None
    ids: list[str] | None = None
    has: list[str] | None = None


def add_found(app: FastAPI, dataset: Dataset, results: Results) -> None:
    """Answer the page's questions about the patches it found."""
    exporting = asyncio.Lock()  # one file at a time: a whole table takes seconds and memory

    @app.post("/explore/matches.bin", include_in_schema=False)
    async def send_matches(conditions: Conditions, request: Request) -> Response:
        mask = np.zeros(len(dataset), np.bool_)
        mask[await results.found(conditions.model_dump(exclude_none=True), request.is_disconnected)] = True
        return Response(np.packbits(mask, bitorder="little").tobytes(), media_type="application/octet-stream")

    @app.get("/explore/list", include_in_schema=False)
    def send_list(rows: str) -> list[dict[str, Any]]:
        words = rows.split(",")
        numbers = [int(word) for word in words if word.isdecimal() and len(word) < 10]
        if not 0 < len(numbers) == len(words) <= MAX_LISTED or max(numbers) >= len(dataset):
            raise HTTPException(400, f"rows must be 1 to {MAX_LISTED} numbers of patches, from 0")
        table = dataset.patch_table.take(np.array(numbers), [layout.ID, layout.DATETIME])
        return [
            {"row": number, "id": row[layout.ID], "time": rfc3339(row[layout.DATETIME])}
            for number, row in zip(numbers, table.to_pylist(), strict=True)
        ]

    @app.post("/explore/found.{form}", include_in_schema=False)
    async def send_found(form: Literal["ids", "parquet"], request: Request) -> Response:
        results.costly()
        bits = np.frombuffer(await request.body(), np.uint8)
        if len(bits) != -(-len(dataset) // 8):
            raise HTTPException(400, "the body must have one bit for each patch of the dataset")
        rows = np.flatnonzero(np.unpackbits(bits, count=len(dataset), bitorder="little"))
        if not len(rows):
            raise HTTPException(400, "there is no patch to write")
        async with exporting:  # no thread waits, of which there are some dozens for all requests
            data = await asyncio.to_thread(written, rows, form)
        return Response(data, media_type=_MEDIA_TYPES[form])

    def written(rows: Rows, form: Literal["ids", "parquet"]) -> bytes:
        return b"".join(render(Selection(dataset, dataset.patch_table, rows), form))
