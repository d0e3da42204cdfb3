"""The dataset as a GeoCroissant card, for machine-learning catalogs."""

from __future__ import annotations

from typing import Any

from reben_cloud.about import About
from reben_cloud.catalog.products import Summary, pixel_sizes
from reben_cloud.catalog.terms import Written
from reben_cloud.root import layout
from reben_cloud.root.metadata import rfc3339
from reben_cloud.root.placement import SPLITS
from reben_cloud.schema import Schema


def croissant_card(summary: Summary, schema: Schema, facts: About, patches: Written | None) -> dict[str, Any]:
    """The dataset as a GeoCroissant card: the table as a file, its main columns as a record set."""
    west, south, east, north = summary.bbox
    country = " country," * summary.has_countries
    file = {
        "@type": "cr:FileObject",
        "@id": layout.PATCHES,
        "name": layout.PATCHES,
        "description": f"Every patch: footprint, times, labels, split,{country} and where its pixels lie.",
        "contentUrl": f"../{layout.PATCHES}",
        "encodingFormat": "application/x-parquet",
    }
    if patches is not None:
        file |= {"contentSize": f"{patches.nbytes} B", "sha256": patches.sha256}
    return {
        "@context": _CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/geo/1.0"],
        "name": facts.card_name,
        **({"alternateName": facts.card_alias} if facts.card_alias else {}),
        "description": facts.description,
        **_published(facts),
        "spatialCoverage": {
            "@type": "sc:Place",
            "geo": {"@type": "sc:GeoShape", "box": f"{south} {west} {north} {east}"},
        },
        "temporalCoverage": "/".join(rfc3339(time) for time in summary.interval),
        "geocr:coordinateReferenceSystem": "EPSG:4326",
        **_resolution(schema),
        "distribution": [file],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "patches",
                "name": "patches",
                "description": "A record per patch.",
                "field": [_field(*one) for one in _fields(summary, facts)],
            }
        ],
    }


def _published(facts: About) -> dict[str, Any]:
    """Licence, citation and maker, in the order in which the card has them."""
    work = facts.work
    found: dict[str, Any] = {} if work is None else {"citeAs": work.citation}
    if facts.license != "other":
        found["license"] = f"https://spdx.org/licenses/{facts.license}.html"
    if work is not None:
        found |= {"url": work.url, "version": work.version, "datePublished": work.published}
    if facts.providers:
        maker = facts.providers[0]
        found["creator"] = {"@type": "sc:Organization", "name": maker.name, "url": maker.url}
    return found


def _resolution(schema: Schema) -> dict[str, Any]:
    sizes = pixel_sizes(schema)
    if not sizes:
        return {}
    value = {"@type": "sc:QuantitativeValue", "value": sizes[0], "unitText": "m"}
    return {"geocr:spatialResolution": value}


def _fields(summary: Summary, facts: About) -> list[tuple[str, str, str]]:
    """Name, type and description of the main columns."""
    text, time = "sc:Text", "sc:DateTime"
    splits = f"{', '.join(SPLITS[:-1])} or {SPLITS[-1]}."
    return [
        (layout.ID, text, "Name of the patch."),
        (layout.DATETIME, time, f"{facts.title_of('datetime')}, UTC."),
        (layout.LABELS, text, "Class names."),
        (layout.SPLIT, text, splits),
        *([(layout.COUNTRY, text, "Country.")] if summary.has_countries else []),
        *((layout.column(key), text, f"Name of the {facts.title_of(key)}.") for key in facts.name_columns),
        ("proj:code", text, "UTM zone as an EPSG code."),
    ]


def _field(name: str, kind: str, text: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"patches/{name}",
        "name": f"patches/{name}",
        "description": text,
        "dataType": kind,
        "source": {"fileObject": {"@id": layout.PATCHES}, "extract": {"column": name}},
    }


_CROISSANT_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "geocr": "http://mlcommons.org/croissant/geo/",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
