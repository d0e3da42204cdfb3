"""A STAC API over a root, and a page to look at it; read-only.

`api` answers STAC requests, `tiffs` makes the images that Items name, `explore` feeds the page. The
table is read once into memory; after that a search touches neither disk nor network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from reben_cloud.errors import missing_extra
from reben_cloud.root.dataset import Dataset

if TYPE_CHECKING:
    from fastapi import FastAPI

    from reben_cloud.serve.apart import Apart
    from reben_cloud.serve.watch import Counts

logger = logging.getLogger(__name__)


def create_app(
    dataset: Dataset, *, public_url: str | None = None, root_path: str = "", apart: Apart | None = None
) -> FastAPI:
    """The ASGI application of a dataset.

    Args:
        dataset: The dataset.
        public_url: URL at which clients reach it, for links behind a proxy that changes scheme, host or path; None for
            the one that each request asks for.
        root_path: Path at the proxy, such as ``/stac``, whether the proxy takes it off or leaves it; that of
            `public_url` where it is empty.
        apart: Process that answers what is costly; None to do so in this one.

    Raises:
        MissingExtraError: If stac-fastapi is not installed.
        ValueError: If the URL or the path cannot be one.
    """
    app, counts = _create_inner(dataset, apart)
    from starlette.middleware.cors import CORSMiddleware

    from reben_cloud.serve.body_limit import BodyLimit
    from reben_cloud.serve.place import Place
    from reben_cloud.serve.watch import Watch

    # The last one is the outermost.
    app.add_middleware(BodyLimit)
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["GET", "HEAD", "POST"], allow_headers=["*"]
    )
    app.add_middleware(Watch, counts=counts)
    app.add_middleware(Place, public_url=public_url, root_path=root_path)
    # Starlette makes them with the first request, which is too late to refuse a wrong URL.
    Place(app, public_url, root_path)
    return app


def create_costly_app(dataset: Dataset) -> FastAPI:
    """The application of the process apart, which gets requests that have passed the middleware of `create_app`."""
    return _create_inner(dataset, None)[0]


def _create_inner(dataset: Dataset, apart: Apart | None) -> tuple[FastAPI, Counts]:
    # It advises against its own defaults while it is imported, before anybody can set anything.
    logging.getLogger("stac_fastapi.types.config").setLevel(logging.ERROR)
    try:
        import stac_fastapi.extensions  # noqa: F401
    except ImportError as error:
        raise missing_extra("stac-fastapi", "stac") from error
    from reben_cloud.serve.api import create_api
    from reben_cloud.serve.explore import add_explorer
    from reben_cloud.serve.layers import shown_columns
    from reben_cloud.serve.metrics import add_metrics
    from reben_cloud.serve.nearest import Nearest
    from reben_cloud.serve.payloads import Payloads
    from reben_cloud.serve.results import Results
    from reben_cloud.serve.tiffs import add_tiffs

    # Every column that is shown, now: threads then share what is read and never read themselves.
    table = dataset.patch_table
    table.read(range(len(table.group_starts) - 1), shown_columns(dataset))
    results = Results(dataset, pass_on=apart is not None)
    nearest = Nearest(dataset, results)
    app = create_api(dataset, nearest, results, apart)
    payloads = Payloads(dataset)
    add_tiffs(app, dataset, payloads)
    add_explorer(app, dataset, nearest, payloads, results)
    return app, add_metrics(app, results, apart)


def serve(
    dataset: Dataset,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    public_url: str | None = None,
    root_path: str = "",
    forwarded_allow_ips: str | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a dataset until interrupted or terminated; requests that have begun are then finished.

    Args:
        dataset: The dataset.
        host: Address to listen on; the default is this machine only.
        port: TCP port; 0 takes a free one.
        public_url: As for `create_app`.
        root_path: As for `create_app`.
        forwarded_allow_ips: Addresses of proxies whose ``X-Forwarded-*`` headers are believed, with commas between, or
            ``*``; None for this machine's alone.
        ready: Called with the URL once clients are answered.

    Raises:
        AddressError: If the address or port cannot be had.
        MissingExtraError: If stac-fastapi is not installed.
        ValueError: If the URL or the path cannot be one.
    """
    try:
        from reben_cloud.serve.apart import Apart
    except ImportError as error:
        raise missing_extra("stac-fastapi", "stac") from error

    apart = Apart(dataset, create_costly_app)
    app = create_app(dataset, public_url=public_url, root_path=root_path, apart=apart)
    from reben_cloud.serve.running import run_server

    apart.start()
    try:
        run_server(
            app,
            host=host,
            port=port,
            forwarded_allow_ips=forwarded_allow_ips,
            ready=ready or (lambda _: None),
        )
    finally:
        apart.close()
