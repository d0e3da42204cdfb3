"""What a filter may name, as a JSON schema that follows from the dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attr
import pyarrow as pa
import pyarrow.compute as pc
from stac_fastapi.extensions.filter.client import BaseFiltersClient
from stac_fastapi.types.errors import NotFoundError
from stac_fastapi.types.requests import get_base_url

from reben_cloud.bigearthnet.about import about
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.placement import SPLITS

_TEXT = {"type": "string"}
_TIME = {"type": "string", "format": "date-time"}
_FLAG = {"type": "boolean"}


@attr.s
class Queryables(BaseFiltersClient):
    """Answers ``/queryables``, and the same for the one collection."""

    dataset: Dataset = attr.ib(kw_only=True)

    def get_queryables(self, collection_id: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """The names, each with its type or its values."""
        path = "queryables"
        if collection_id is not None:
            if collection_id != about(self.dataset.schema).collection:
                raise NotFoundError(f"no such collection: {collection_id[:80]}")
            path = f"collections/{collection_id}/queryables"
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"{get_base_url(kwargs['request'])}{path}",
            "type": "object",
            "title": f"Queryables of {self.dataset.schema.name}",
            "additionalProperties": False,
            "properties": queryables(self.dataset),
        }


def queryables(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Name -> what values it has; of a column that the dataset's table lacks, nothing."""
    schema = dataset.schema
    facts = about(schema)
    table = dataset.patch_table

    def of(field: str, kind: Mapping[str, object]) -> dict[str, dict[str, Any]]:
        return {layout.column(field): {"title": facts.title_of(field), **kind}}

    known = {
        **of("patch_id", _TEXT),
        "collection": {"title": "Collection", **_TEXT},
        layout.GEOMETRY: {"title": "Footprint", "$ref": "https://geojson.org/schema/Polygon.json"},
        layout.DATETIME: {"title": facts.title_of("datetime"), **_TIME},
        "platform": {"title": facts.title_of("platform"), **_one_of(_distinct(dataset, "platform"))},
        "grid:code": {"title": "MGRS square", **_TEXT},
        "proj:code": {"title": "UTM zone", **_TEXT},
        **of("labels", {"type": "array", "items": _one_of(facts.class_order or schema.classes.names)}),
        **of("split", _one_of(SPLITS)),
        **of("country", _one_of(dataset.countries)),
        **of("product", _TEXT),
        **of("s1_datetime", _TIME),
    }
    layered = set[str]()
    for field in dataset.manifest.metadata_columns:
        column = layout.column(field)
        if column in table.names and column not in known and (kind := _kind(table.schema.field(column).type)):
            known |= of(field, kind)
    for name, joined in table.joined.items():
        for field in (*joined.fields, *joined.row_fields):
            if not layout.is_checksum_column(field.name) and (kind := _kind(field.type)):
                title = f"{joined.layer.manifest.title or name}: {field.name.partition(':')[2]}"
                known[field.name] = {"title": title, **kind}
                layered.add(field.name)
    return {name: value for name, value in known.items() if name in table.names or name in layered}


def _one_of(values: Sequence[str]) -> dict[str, Any]:
    """JSON schema of a few strings. The type is said too: STAC Browser offers no filter without one."""
    return {**_TEXT, "enum": list(values)}


def _kind(dtype: pa.DataType) -> dict[str, Any] | None:
    """JSON schema of a column's values; None for what a filter cannot compare."""
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    for fits, kind in (
        (pa.types.is_boolean, _FLAG),
        (pa.types.is_integer, {"type": "integer"}),
        (pa.types.is_floating, {"type": "number"}),
        (pa.types.is_timestamp, _TIME),
        (pa.types.is_string, _TEXT),
    ):
        if fits(dtype):
            return kind
    return None


def _distinct(dataset: Dataset, name: str) -> list[str]:
    if name not in dataset.patch_table.names:
        return []
    return sorted(pc.unique(dataset.selection.column(name).cast(pa.string())).to_pylist())
