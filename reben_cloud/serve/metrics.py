"""Numbers for Prometheus, and whether the server is ready for clients."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import PlainTextResponse, Response

from reben_cloud.serve.apart import Apart
from reben_cloud.serve.results import Results
from reben_cloud.serve.watch import Counts

PATH = "/_mgmt/metrics"


def add_metrics(app: FastAPI, results: Results, apart: Apart | None) -> Counts:
    """Add ``/_mgmt/metrics``; what it tells of requests is what is counted in the value that is returned.

    Searches, threads, processor time and memory are those of both processes.

    ``/_mgmt/ping`` (alive) and ``/_mgmt/health`` (ready: the whole table has been read before the server listens)
    are stac-fastapi's.
    """
    counts = Counts()

    @app.get(PATH, tags=["Liveliness/Readiness"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        lanes = results.lanes
        gauges: dict[str, float] = {
            "searches_short": lanes.num_short,
            "searches_long": lanes.num_long,
            "searches_given_up_total": lanes.num_given_up,
            "searches_refused_total": lanes.num_refused,
            "threads": threading.active_count(),
            "processor_seconds_total": time.process_time(),
            "resident_memory_bytes": _resident_bytes(),
        }
        if apart is not None:
            for line in (await apart.ask(PATH)).decode().splitlines():
                name, _, number = line.removeprefix("reben_").rpartition(" ")
                if name in gauges:
                    gauges[name] += float(number)
        return Response(counts.exposition(gauges), media_type="text/plain; version=0.0.4; charset=utf-8")

    return counts


def _resident_bytes() -> int:
    """Memory of the process; 0 where the system does not say (Linux does)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
