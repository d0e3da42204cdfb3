"""A STAC API over a root, and a page to look at it; read-only, in one process.

`api` answers STAC requests, `tiffs` makes the images that Items name, `explore` feeds the page. The
table is read once into memory; after that a search touches neither disk nor network.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from reben_cloud.errors import missing_extra
from reben_cloud.root.dataset import Dataset

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)


def create_app(dataset: Dataset) -> FastAPI:
    """The ASGI application of a dataset.

    Raises:
        MissingExtraError: If stac-fastapi is not installed.
    """
    # It advises against its own defaults while it is imported, before anybody can set anything.
    logging.getLogger("stac_fastapi.types.config").setLevel(logging.ERROR)
    try:
        import stac_fastapi.extensions  # noqa: F401
    except ImportError as error:
        raise missing_extra("stac-fastapi", "stac") from error
    from reben_cloud.serve.api import create_api
    from reben_cloud.serve.explore import add_explorer
    from reben_cloud.serve.layers import shown_columns
    from reben_cloud.serve.nearest import Nearest
    from reben_cloud.serve.payloads import Payloads
    from reben_cloud.serve.tiffs import add_tiffs

    # Every column that is shown, now: threads then share what is read and never read themselves.
    table = dataset.patch_table
    table.read(range(len(table.group_starts) - 1), shown_columns(dataset))
    nearest = Nearest(dataset)
    app = create_api(dataset, nearest)
    payloads = Payloads(dataset)
    add_tiffs(app, dataset, payloads)
    add_explorer(app, dataset, nearest, payloads)
    return app


def serve(dataset: Dataset, *, host: str = "127.0.0.1", port: int = 8000, **options: Any) -> None:
    """Serve a dataset until interrupted.

    Args:
        dataset: The dataset.
        host: Address to listen on; the default is this machine only.
        port: TCP port.
        options: Further options of ``uvicorn.run``.
    """
    app = create_app(dataset)
    import uvicorn

    uvicorn.run(app, host=host, port=port, log_level="warning", **options)
