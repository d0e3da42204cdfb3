"""The STAC Collections: of the dataset, and of the training shards with its Items."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pystac
import shapely

from reben_cloud.bigearthnet.labels import CLASSES
from reben_cloud.catalog.products import Summary, band_extensions, zarr_definition
from reben_cloud.catalog.terms import (
    CITATION,
    DOI,
    LICENSE_URL,
    LINEAGE,
    PARQUET_TYPE,
    SHARDS_ID,
    TAR_TYPE,
    TITLE,
    Written,
    extension,
    file_fields,
)
from reben_cloud.root.layout import COLLECTION_ID
from reben_cloud.root.patches import DESCRIPTION, LICENSE, REBEN_EXTENSION, rfc3339
from reben_cloud.root.placement import SPLITS


def dataset_collection(
    table: pa.Table, summary: Summary, modalities: Sequence[str], objects: Mapping[str, Written]
) -> pystac.Collection:
    """The Collection of the patches, without its Items."""

    def distinct(name: str) -> list[str]:
        return sorted(pc.unique(table.column(name).combine_chunks().dictionary_decode()).to_pylist())

    kinds = modalities or ("s2", "s1", "map")
    patches = pystac.Asset(
        "../patches.parquet",
        title="Every patch as a STAC Item (stac-geoparquet)",
        media_type=PARQUET_TYPE,
        roles=["collection-mirror"],
        extra_fields={
            "table:row_count": table.num_rows,
            "table:primary_geometry": "geometry",
            "table:columns": [
                {"name": field.name, "type": str(_decoded(field.type))} for field in table.schema
            ],
            **file_fields(objects.get("patches.parquet")),
        },
    )
    card = pystac.Asset(
        "./croissant.json", title="Croissant card", media_type="application/ld+json", roles=["metadata"]
    )
    collection = pystac.Collection(
        COLLECTION_ID,
        DESCRIPTION,
        pystac.Extent(
            pystac.SpatialExtent([summary.bbox]),
            pystac.TemporalExtent([[summary.interval[0], summary.interval[1]]]),
        ),
        title=TITLE,
        license=LICENSE,
        keywords=["Sentinel-1", "Sentinel-2", "land cover", "CORINE", "multi-label", "BigEarthNet", "reBEN"],
        providers=[
            pystac.Provider(
                "BigEarthNet, TU Berlin and BIFOLD",
                roles=[pystac.ProviderRole.PROCESSOR, pystac.ProviderRole.LICENSOR],
                url="https://bigearth.net",
                extra_fields={"processing:lineage": LINEAGE},
            ),
            pystac.Provider(
                "ESA",
                "Copernicus Sentinel data",
                [pystac.ProviderRole.PRODUCER],
                "https://sentinels.copernicus.eu",
            ),
        ],
        summaries=pystac.Summaries(
            {
                "datetime": {
                    "minimum": rfc3339(summary.interval[0]),
                    "maximum": rfc3339(summary.interval[1]),
                },
                "platform": distinct("platform"),
                "constellation": ["sentinel-2"],
                "instruments": ["msi"],
                "gsd": [10, 20, 60],
                "proj:code": distinct("proj:code"),
                "grid:code": distinct("grid:code"),
                "reben:split": list(SPLITS),
                "reben:country": sorted(distinct("reben:country")),
                "reben:labels": list(CLASSES),
            },
            maxcount=200,
        ),
        assets={"patches": patches, "croissant": card},
        extra_fields={
            "version": "2.0.0",
            "sci:doi": DOI,
            "sci:citation": CITATION,
            "sci:publications": [{"doi": "10.48550/arXiv.2407.03653", "citation": CITATION}],
            "item_assets": {"zarr": zarr_definition(kinds)},
        },
    )
    names = ["file", "processing", "projection", "scientific", "table", "version", *band_extensions(kinds)]
    if "map" in kinds:
        names.append("classification")
    collection.stac_extensions = [*map(extension, sorted(names)), REBEN_EXTENSION]
    for rel, href, title in (
        (
            "license",
            LICENSE_URL,
            "Community Data License Agreement - Permissive - Version 1.0",
        ),
        ("cite-as", f"https://doi.org/{DOI}", "The published archives"),
        ("about", "https://bigearth.net", "BigEarthNet"),
    ):
        collection.add_link(pystac.Link(rel, href, "text/html", title))
    return collection


def _decoded(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def shard_collection(
    summary: Summary, manifest: Mapping[str, Any], objects: Mapping[str, Written]
) -> pystac.Collection:
    """The Collection of the shards, with an Item a group and modality."""
    extent = pystac.Extent(
        pystac.SpatialExtent([summary.bbox]),
        pystac.TemporalExtent([[summary.interval[0], summary.interval[1]]]),
    )
    collection = pystac.Collection(
        SHARDS_ID,
        "WebDataset shards of BigEarthNet v2.0: each split shuffled once and cut into tar files of a few hundred "
        "samples, one tar a modality; equal numbers and rows are the same patch.",
        extent,
        title=f"{TITLE}: training shards",
        license=LICENSE,
    )
    collection.add_link(pystac.Link("license", LICENSE_URL, "text/html", "The licence"))
    for group, sizes in manifest["groups"].items():
        for modality in manifest["modalities"]:
            collection.add_item(_shard_item(f"{group}-{modality}", group, modality, sizes, summary, objects))
    return collection


def _shard_item(
    name: str,
    group: str,
    modality: str,
    sizes: Mapping[str, int],
    summary: Summary,
    objects: Mapping[str, Written],
) -> pystac.Item:
    box = shapely.box(*summary.bbox, ccw=True)
    item = pystac.Item(
        name,
        json.loads(shapely.to_geojson(box)),
        summary.bbox,
        None,
        {
            "title": f"{modality} of {group}",
            "reben:shard_group": group,
            "reben:modality": modality,
            "reben:num_samples": sizes["num_samples"],
        },
        start_datetime=summary.interval[0],
        end_datetime=summary.interval[1],
    )
    prefix = f"shards/{group}/{modality}/"
    for path in sorted(path for path in objects if path.startswith(prefix)):
        item.add_asset(
            path.rsplit("/", 1)[1].removesuffix(".tar"),
            pystac.Asset(f"../../{path}", None, None, TAR_TYPE, ["data"], file_fields(objects[path])),
        )
    item.stac_extensions = [extension("file"), REBEN_EXTENSION]
    return item
