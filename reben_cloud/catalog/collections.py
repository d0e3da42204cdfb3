"""The STAC Collections: of the dataset, and of the training shards with its Items."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pystac
import shapely

from reben_cloud.about import About, Provider
from reben_cloud.catalog.groups import group_definition, group_extensions
from reben_cloud.catalog.products import Summary, acquisition_fields, pixel_sizes
from reben_cloud.catalog.terms import PARQUET_TYPE, TAR_TYPE, Written, extensions, extensions_of, file_fields
from reben_cloud.root import layout
from reben_cloud.root.metadata import rfc3339
from reben_cloud.root.placement import SPLITS
from reben_cloud.schema import Schema


def dataset_collection(
    table: pa.Table, summary: Summary, schema: Schema, facts: About, objects: Mapping[str, Written]
) -> pystac.Collection:
    """The Collection of the patches, without its Items."""
    card = pystac.Asset(
        "./croissant.json", title="Croissant card", media_type="application/ld+json", roles=["metadata"]
    )
    fields = {**_published(facts), "item_assets": {"zarr": group_definition(schema, facts)}}
    collection = pystac.Collection(
        facts.collection,
        facts.description,
        _extent(summary),
        title=facts.title,
        license=facts.license,
        keywords=list(facts.keywords) or None,
        providers=[_provider(one) for one in facts.providers] or None,
        summaries=pystac.Summaries(_summaries(table, summary, schema, facts), maxcount=200),
        assets={"patches": _table_asset(table, objects), "croissant": card},
        extra_fields=fields,
    )
    provided = (name for provider in facts.providers for name in provider.fields)
    names = {"file", "projection", "table"} | extensions_of(provided) | group_extensions(schema, facts)
    if facts.work is not None:
        names |= {"scientific", "version"}
    if schema.map_array is not None:
        names.add("classification")
    collection.stac_extensions = extensions(names, facts)
    for rel, href, title in _links(facts):
        collection.add_link(pystac.Link(rel, href, "text/html", title))
    return collection


def _extent(summary: Summary) -> pystac.Extent:
    return pystac.Extent(
        pystac.SpatialExtent([summary.bbox]),
        pystac.TemporalExtent([[summary.interval[0], summary.interval[1]]]),
    )


def _table_asset(table: pa.Table, objects: Mapping[str, Written]) -> pystac.Asset:
    return pystac.Asset(
        f"../{layout.PATCHES}",
        title="Every patch as a STAC Item (stac-geoparquet)",
        media_type=PARQUET_TYPE,
        roles=["collection-mirror"],
        extra_fields={
            "table:row_count": table.num_rows,
            "table:primary_geometry": layout.GEOMETRY,
            "table:columns": [
                {"name": field.name, "type": str(_decoded(field.type))} for field in table.schema
            ],
            **file_fields(objects.get(layout.PATCHES)),
        },
    )


def _decoded(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _provider(one: Provider) -> pystac.Provider:
    roles = [pystac.ProviderRole(role) for role in one.roles]
    return pystac.Provider(one.name, one.description, roles, one.url, extra_fields=dict(one.fields) or None)


def _summaries(table: pa.Table, summary: Summary, schema: Schema, facts: About) -> dict[str, Any]:
    def distinct(name: str) -> dict[str, list[str]]:
        if name not in table.column_names:
            return {}
        return {name: sorted(pc.unique(table.column(name).cast(pa.string())).to_pylist())}

    acquisition = {k: v if isinstance(v, list) else [v] for k, v in acquisition_fields(facts).items()}
    sizes = pixel_sizes(schema)
    return {
        "datetime": {"minimum": rfc3339(summary.interval[0]), "maximum": rfc3339(summary.interval[1])},
        **distinct("platform"),
        **acquisition,
        **({"gsd": sizes} if sizes else {}),
        **distinct("proj:code"),
        **distinct("grid:code"),
        layout.SPLIT: list(SPLITS),
        **distinct(layout.COUNTRY),
        layout.LABELS: list(facts.class_order or schema.classes.names),
    }


def _published(facts: About) -> dict[str, Any]:
    work = facts.work
    if work is None:
        return {}
    return {
        "version": work.version,
        "sci:doi": work.doi,
        "sci:citation": work.citation,
        "sci:publications": [{"doi": work.paper_doi, "citation": work.citation}],
    }


def _links(facts: About) -> list[tuple[str, str, str]]:
    """Relation, address and title of pages elsewhere."""
    found = [] if facts.license_url is None else [("license", facts.license_url, facts.license_title)]
    if facts.work is not None:
        found.append(("cite-as", f"https://doi.org/{facts.work.doi}", facts.work.data_title))
        found.append(("about", facts.work.url, facts.work.page_title))
    return found


def shard_collection(
    summary: Summary,
    group_sizes: Mapping[str, int],
    schema: Schema,
    facts: About,
    objects: Mapping[str, Written],
) -> pystac.Collection:
    """The Collection of the shards, with an Item per group and modality.

    Args:
        summary: Of all patches.
        group_sizes: Shard group -> number of samples.
        schema: Of the dataset.
        facts: What is said of it.
        objects: Path -> object, for the checksums of the shards.
    """
    collection = pystac.Collection(
        layout.shards_id(facts.collection),
        f"WebDataset shards of {schema.name}: each split shuffled once and cut into tar files of a few hundred "
        "samples, one tar per modality; equal numbers and rows are the same patch.",
        _extent(summary),
        title=f"{facts.title}: training shards",
        license=facts.license,
    )
    if facts.license_url is not None:
        collection.add_link(pystac.Link("license", facts.license_url, "text/html", "The licence"))
    for group, num_samples in group_sizes.items():
        for modality in schema.modality_names:
            collection.add_item(_shard_item(group, modality, num_samples, summary, facts, objects))
    return collection


def _shard_item(
    group: str,
    modality: str,
    num_samples: int,
    summary: Summary,
    facts: About,
    objects: Mapping[str, Written],
) -> pystac.Item:
    box = shapely.box(*summary.bbox, ccw=True)
    item = pystac.Item(
        f"{group}-{modality}",
        json.loads(shapely.to_geojson(box)),
        summary.bbox,
        None,
        {
            "title": f"{modality} of {group}",
            layout.SHARD_GROUP: group,
            layout.column("modality"): modality,
            layout.column("num_samples"): num_samples,
        },
        start_datetime=summary.interval[0],
        end_datetime=summary.interval[1],
    )
    prefix = f"{layout.shards_of(group, modality)}/"
    for path in sorted(path for path in objects if path.startswith(prefix)):
        item.add_asset(
            path.rsplit("/", 1)[1].removesuffix(".tar"),
            pystac.Asset(f"../../{path}", None, None, TAR_TYPE, ["data"], file_fields(objects[path])),
        )
    item.stac_extensions = extensions(["file"], facts)
    return item
