"""Errors as answers: a status, and one sentence in JSON, whatever went wrong and wherever."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from stac_fastapi.types.errors import InvalidQueryParameter, NotFoundError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reben_cloud import errors
from reben_cloud.root.dataset import Dataset

logger = logging.getLogger(__name__)

REFUSED_AFTER_S = 1.0
"""How long a refusal that costs something is held back: who asks again at once would keep the server busy with them."""

MAX_SENTENCE = 300
"""Most characters of an error: what was sent may be quoted in one, and is not sent back whole."""


def answer(status: int, description: str, *, headers: dict[str, str] | None = None) -> Response:
    """An error as STAC APIs tell it: a code for programs, a sentence for people."""
    code = HTTPStatus(status).phrase.replace(" ", "") if status in set(HTTPStatus) else f"Status{status}"
    text = " ".join(description.split())
    if len(text) > MAX_SENTENCE:
        text = f"{text[:MAX_SENTENCE]}…"
    # Surrogates, which JSON may hold, are no characters that can be sent.
    text = text.encode(errors="replace").decode()
    return JSONResponse({"code": code, "description": text}, status, headers=headers)


def add_error_answers(app: FastAPI, dataset: Dataset) -> None:
    """Let an application answer its errors so, without a word about where the server has its files."""
    stores = [(dataset.store, "this dataset")]
    stores += [(layer.store, f"the layer {name}") for name, layer in dataset.layers.items()]
    places = {
        str(place): name for store, name in stores for place in (store.url, store.local_path()) if place
    }

    def told(error: object) -> str:
        text = str(error)
        for place in sorted(places, key=len, reverse=True):  # one may be the beginning of another
            text = text.replace(place, places[place])
        return text

    def wrong(_: Request, error: Exception) -> Response:
        return answer(400, told(error))

    def missing(_: Request, error: Exception) -> Response:
        return answer(404, told(error))

    def unfit(_: Request, error: Exception) -> Response:
        first = cast(RequestValidationError, error).errors()[0]
        place = ".".join(str(one) for one in first["loc"] if isinstance(one, int) or len(one) <= 40)
        return answer(400, f"{place}: {first['msg'].removeprefix('Value error, ')}")

    def http(_: Request, error: Exception) -> Response:
        known = cast(HTTPException, error)
        return answer(known.status_code, told(known.detail), headers=dict(known.headers or {}))

    def unreadable(_: Request, error: Exception) -> Response:
        logger.error("the dataset cannot be read: %s", error)
        return answer(
            502, "the dataset cannot be read just now: come again later", headers={"Retry-After": "10"}
        )

    def damaged(request: Request, error: Exception) -> Response:
        logger.error("%s: the dataset is damaged: %s", request.url.path[:200], error)
        return answer(
            500, "what is asked for is stored damaged, or not whole; `reben-cloud verify` says what is wrong"
        )

    def lost(request: Request, error: Exception) -> Response:
        logger.warning("%s: %s", request.url.path[:200], error)
        return answer(404, told(error))

    app.add_exception_handler(InvalidQueryParameter, wrong)
    app.add_exception_handler(NotFoundError, missing)
    app.add_exception_handler(RequestValidationError, unfit)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(errors.StorageError, unreadable)
    app.add_exception_handler(errors.ChecksumError, damaged)
    app.add_exception_handler(errors.InvalidPatchError, damaged)
    app.add_exception_handler(errors.NotFoundError, lost)


class LastResort:
    """Answers 500 for an error that nobody expected, within all that sees to headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the application, and answers for it if it fails before it has begun to."""
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except Exception:
            if begun or scope["type"] != "http":
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await answer(500, "the server has failed at this request, which is a fault of the server's")(
                scope, receive, send
            )
