"""Offline validation against the published JSON schemas of STAC and its extensions."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator
from referencing import Registry, Resource

from reben_cloud.bigearthnet.about import REBEN_EXTENSION

REPOSITORY = Path(__file__).parent.parent
CORE = "https://schemas.stacspec.org/v1.1.0/{0}-spec/json-schema/{0}.json"
KIND = {"Feature": "item", "Collection": "collection", "Catalog": "catalog"}


@cache
def schemas(folder: Path) -> dict[str, Any]:
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    found = {url: json.loads((folder / file).read_text(encoding="utf-8")) for url, file in index.items()}
    ours = REPOSITORY / "stac" / "reben" / "v1.0.0" / "schema.json"
    return {**found, REBEN_EXTENSION: json.loads(ours.read_text(encoding="utf-8"))}


@cache
def _validator(folder: Path, url: str) -> Draft7Validator:
    # No `retrieve`: an unknown reference raises instead of reaching for the network.
    known = ((u, Resource.from_contents(s)) for u, s in schemas(folder).items())
    registry: Any = Registry().with_resources(known)
    return Draft7Validator(
        schemas(folder)[url], registry=registry, format_checker=Draft7Validator.FORMAT_CHECKER
    )


def stac_errors(document: dict[str, Any], folder: Path) -> list[str]:
    """Every violation of the core schema and of each declared extension."""
    urls = [CORE.format(KIND[document["type"]]), *document.get("stac_extensions", [])]
    return [
        f"{url}: {error.json_path}: {[e.message[:200] for e in error.context or [error]]}"
        for url in urls
        for error in _validator(folder, url).iter_errors(document)
    ]
