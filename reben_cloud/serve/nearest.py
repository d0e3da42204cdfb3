"""Patches that are most like one, for the API and the page."""

from __future__ import annotations

import asyncio

from stac_fastapi.types.errors import InvalidQueryParameter, NotFoundError

from reben_cloud import errors
from reben_cloud.root.dataset import Dataset
from reben_cloud.search import known_ids
from reben_cloud.search.similar import Neighbours
from reben_cloud.serve.results import Results


class Nearest:
    """Looks through the embeddings of a dataset, for one request at a time: each look takes every core.

    A coroutine, so that no thread waits for its turn.
    """

    def __init__(self, dataset: Dataset, results: Results) -> None:
        self.dataset, self._results = dataset, results
        self._looking = asyncio.Lock()

    async def to(self, patch_id: str, *, column: str | None, k: int) -> Neighbours:
        """The patches nearest to one.

        Raises:
            NotFoundError: If there is no such patch, or it has no embedding.
            InvalidQueryParameter: If there is no such column, or several and none is named.
            CostlyError: If another process does what is costly.
        """
        self._results.costly()
        async with self._looking:
            return await asyncio.to_thread(self._look, patch_id, column, k)

    def _look(self, patch_id: str, column: str | None, k: int) -> Neighbours:
        if not known_ids(self.dataset, patch_id):
            raise NotFoundError(f"no such patch: {patch_id[:80]}")
        try:
            return self.dataset.selection.nearest(patch_id, column=column, k=k)
        except errors.NotFoundError as error:
            raise NotFoundError(str(error)) from error
        except errors.RebenError:
            raise
        except ValueError as error:
            raise InvalidQueryParameter(str(error)) from error
