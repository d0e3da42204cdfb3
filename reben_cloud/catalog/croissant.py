"""The dataset as a GeoCroissant card, for machine-learning catalogs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from reben_cloud.catalog.terms import CITATION, Written
from reben_cloud.root.patches import DESCRIPTION, LICENSE, rfc3339


def croissant_card(
    bbox: Sequence[float], interval: tuple[datetime, datetime], patches: Written | None
) -> dict[str, Any]:
    """The dataset as a GeoCroissant card: the table as a file, its main columns as a record set."""
    fields = (
        ("id", "sc:Text", "Name of the patch."),
        ("datetime", "sc:DateTime", "Sentinel-2 acquisition, UTC."),
        ("reben:labels", "sc:Text", "Class names."),
        ("reben:split", "sc:Text", "train, validation or test."),
        ("reben:country", "sc:Text", "Country."),
        ("reben:s1_name", "sc:Text", "Name of the Sentinel-1 patch."),
        ("proj:code", "sc:Text", "UTM zone as an EPSG code."),
    )
    west, south, east, north = bbox
    file = {
        "@type": "cr:FileObject",
        "@id": "patches.parquet",
        "name": "patches.parquet",
        "description": "Every patch: footprint, times, labels, split, country, and where its pixels lie.",
        "contentUrl": "../patches.parquet",
        "encodingFormat": "application/x-parquet",
    }
    if patches is not None:
        file |= {"contentSize": f"{patches.nbytes} B", "sha256": patches.sha256}
    return {
        "@context": _CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/geo/1.0"],
        "name": "BigEarthNet-v2",
        "alternateName": "reBEN",
        "description": DESCRIPTION,
        "citeAs": CITATION,
        "license": f"https://spdx.org/licenses/{LICENSE}.html",
        "url": "https://bigearth.net",
        "version": "2.0.0",
        # The month of the article's first version (arXiv 2407.03653), which announces the archives.
        "datePublished": "2024-07",
        "creator": {
            "@type": "sc:Organization",
            "name": "BigEarthNet, TU Berlin and BIFOLD",
            "url": "https://bigearth.net",
        },
        "spatialCoverage": {
            "@type": "sc:Place",
            "geo": {"@type": "sc:GeoShape", "box": f"{south} {west} {north} {east}"},
        },
        "temporalCoverage": "/".join(rfc3339(time) for time in interval),
        "geocr:coordinateReferenceSystem": "EPSG:4326",
        "geocr:spatialResolution": {"@type": "sc:QuantitativeValue", "value": 10, "unitText": "m"},
        "distribution": [file],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "patches",
                "name": "patches",
                "description": "A record a patch.",
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"patches/{name}",
                        "name": f"patches/{name}",
                        "description": text,
                        "dataType": kind,
                        "source": {"fileObject": {"@id": "patches.parquet"}, "extract": {"column": name}},
                    }
                    for name, kind, text in fields
                ],
            }
        ],
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
