"""STAC documents: the static catalog of a root or of the metadata alone, and Items of patches.

    catalog.json
    bigearthnet-v2/collection.json               the dataset; its tables as assets
    bigearthnet-v2/croissant.json                the same as a GeoCroissant card
    bigearthnet-v2/<product>/<product>.json      an Item a product; its Zarr group is an asset
    bigearthnet-v2-shards/collection.json        roots only
    bigearthnet-v2-shards/<x>/<x>.json           an Item a shard group and modality; shards are assets

The 549,488 patches are Items too, but of ``patches.parquet`` (`metadata`): as files they would be
0.7 GB that nobody crawls. Everything is made from numbers in hand, and the same numbers give the
same bytes. This module reads and writes no store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pystac
import shapely
from numpy.typing import NDArray

from reben_cloud.bands import ARRAYS, BANDS, MAP_UNLABELLED
from reben_cloud.formats import zarr
from reben_cloud.labels import CLASSES, CLC
from reben_cloud.metadata import (
    COLLECTION_ID,
    DESCRIPTION,
    LICENSE,
    REBEN_EXTENSION,
    SPLITS,
    rfc3339,
)
from reben_cloud.picture import BRIGHTEST, GAMMA, TRUE_COLOR

SHARDS_ID = f"{COLLECTION_ID}-shards"
"""Id of the collection of training shards."""

TITLE = "BigEarthNet v2.0 (reBEN)"
"""Title of the collection."""

DOI = "10.5281/zenodo.10891137"
"""DOI of the published archives."""

CITATION = (
    "K. Clasen, L. Hackel, T. Burgert, G. Sumbul, B. Demir, V. Markl: reBEN: Refined BigEarthNet Dataset for "
    "Remote Sensing Image Analysis. IEEE International Geoscience and Remote Sensing Symposium (IGARSS), 2025."
)
"""How the authors ask to be cited."""

LINEAGE = (
    "Sentinel-2 L1C processed to L2A with sen2cor, Sentinel-1 GRD terrain-corrected to sigma nought in dB, "
    "CORINE Land Cover 2018 rasterised; cut into patches of 1200 m, split by place."
)
"""How the dataset was made."""

ZARR_TYPE = "application/vnd.zarr; version=3"
PARQUET_TYPE = "application/vnd.apache.parquet"
TAR_TYPE = "application/x-tar"

_VERSIONS = {
    "classification": "2.0.0",
    "datacube": "2.3.0",
    "eo": "2.0.0",
    "file": "2.1.0",
    "grid": "1.1.0",
    "processing": "1.2.0",
    "projection": "2.0.0",
    "raster": "2.0.0",
    "render": "2.0.0",
    "sar": "1.3.0",
    "sat": "1.2.0",
    "scientific": "1.0.0",
    "storage": "2.0.0",
    "table": "1.2.0",
    "version": "1.2.0",
    "zarr": "1.1.0",
}

SQUARE = np.dtype([("head", "V13"), ("ring", "<f8", (5, 2))])
"""WKB of a patch's footprint, as `metadata` writes it: one ring of five points."""


class Written(Protocol):
    """What is known of an object of a root."""

    @property
    def path(self) -> str:
        """Path below the root."""
        ...

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...

    @property
    def sha256(self) -> str:
        """Hex digest."""
        ...


def extension(name: str) -> str:
    """URL of a STAC extension's schema, in the version used here."""
    return f"https://stac-extensions.github.io/{name}/v{_VERSIONS[name]}/schema.json"


def root_documents(
    table: pa.Table, manifest: Mapping[str, Any] | None, written: Sequence[Written]
) -> dict[str, bytes]:
    """Every catalog document of a root, or of the metadata alone.

    Args:
        table: `metadata.patches_table`.
        manifest: Of the root; None when only the tables exist.
        written: The objects that the documents describe, with checksums: tables and shards.

    Returns:
        Path -> bytes, the same for the same arguments.
    """
    objects = {o.path: o for o in written}
    modalities = tuple(manifest["modalities"]) if manifest else ()
    catalog = pystac.Catalog(
        "reben",
        f"{TITLE} as a cloud-native dataset",
        title=TITLE,
        catalog_type=pystac.CatalogType.SELF_CONTAINED,
    )
    summary = _Summary(table)
    collection = _collection(table, summary, modalities, objects)
    for product in summary.products:
        collection.add_item(_product_item(table, product, summary, modalities, objects))
    catalog.add_child(collection)
    shards = _shard_collection(summary, manifest, objects) if manifest else None
    if shards is not None:
        catalog.add_child(shards)
    catalog.normalize_hrefs("/")
    documents: dict[str, bytes] = {}
    for parent, _, items in catalog.walk():
        documents[_path(parent)] = _json(parent)
        documents.update((_path(item), _json(item)) for item in items)
    card = croissant_card(summary.bbox, summary.interval, objects.get("patches.parquet"))
    documents[f"{COLLECTION_ID}/croissant.json"] = _dump(card)
    return documents


def thumbnail_path(product: str) -> str:
    """Where the true-colour picture of a product lies in a root."""
    return f"{COLLECTION_ID}/{product}/thumbnail.png"


def patch_items(
    table: pa.Table, url: str | None = None, s3_location: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of ``patches.parquet`` as STAC Items, plain dictionaries.

    Args:
        table: All columns of the rows.
        url: Where the table lies; links and assets are then absolute.
        s3_location: `Store.s3_location`, when `url` is in a bucket; assets then say how to reach it.

    Yields:
        An Item a row, in order. 64-bit checksums become 16 hex digits, which JSON can hold.
    """
    rings = wkb_rings(table.column("geometry"))
    fixed = {"id", "geometry", "bbox", "links", "assets", "stac_version", "stac_extensions", "collection"}
    properties = table.drop_columns([name for name in table.column_names if name in fixed])
    parts = table.select([name for name in table.column_names if name in fixed - {"geometry"}])
    for part, values, ring in zip(parts.to_pylist(), properties.to_pylist(), rings.tolist(), strict=True):
        assets = part.get("assets") or {}
        item = {
            "type": "Feature",
            "stac_version": part["stac_version"],
            "stac_extensions": part["stac_extensions"],
            "id": part["id"],
            "collection": part["collection"],
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "bbox": [part["bbox"][side] for side in ("xmin", "ymin", "xmax", "ymax")],
            "properties": {name: _plain(name, v) for name, v in values.items() if v is not None},
            "links": [_absolute(link, url) for link in part["links"]],
            "assets": {name: _absolute(asset, url) for name, asset in assets.items()},
        }
        if s3_location is not None:
            add_storage(item, item["properties"], s3_location)
        yield item


def add_storage(document: dict[str, Any], fields: dict[str, Any], s3_location: Mapping[str, str]) -> None:
    """Say in a document with absolute ``s3://`` assets which server has them (storage extension).

    The documents of a root do not: their assets are relative, and a root has the same bytes wherever it lies.

    Args:
        document: An Item or a Collection; changed.
        fields: Where its fields stand: an Item's properties, or the Collection itself.
        s3_location: `Store.s3_location`.
    """
    custom = "endpoint" in s3_location
    fields["storage:schemes"] = {
        "root": {
            "type": "custom-s3" if custom else "aws-s3",
            "platform": s3_location.get("endpoint", "https://{bucket}.s3.{region}.amazonaws.com"),
            "bucket": s3_location["bucket"],
            "region": s3_location["region"],
        }
    }
    document["stac_extensions"] = [*document["stac_extensions"], extension("storage")]
    for asset in document["assets"].values():
        asset["storage:refs"] = ["root"]


def wkb_rings(geometry: Any) -> NDArray[np.float64]:
    """Corners of a geometry column of ``patches.parquet``, (n, 5, 2) longitude and latitude."""
    data = b"".join(geometry.to_pylist())
    return np.ascontiguousarray(np.frombuffer(data, SQUARE)["ring"])


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339(value)
    return f"{value:016x}" if name.endswith("_xxh3") else value


def _absolute(link: Mapping[str, Any], url: str | None) -> dict[str, Any]:
    if url is None:
        return dict(link)
    return {**link, "href": f"{url}/{str(link['href']).removeprefix('./')}"}


class _Summary:
    """What the documents say of all patches and of each product."""

    def __init__(self, table: pa.Table) -> None:
        bbox = table.column("bbox").combine_chunks()
        self.bbox = [
            float(reduce(bbox.field(side)).as_py())
            for side, reduce in (("xmin", pc.min), ("ymin", pc.min), ("xmax", pc.max), ("ymax", pc.max))
        ]
        """West, south, east, north."""
        times = pc.min_max(table.column("datetime")).as_py()
        self.interval: tuple[datetime, datetime] = (times["min"], times["max"])
        """First and last Sentinel-2 acquisition."""
        names = (
            table.column("reben:product").combine_chunks().dictionary_decode().to_numpy(zero_copy_only=False)
        )
        starts = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]]))
        ends = np.append(starts[1:], len(names))
        self.rows: dict[str, tuple[int, int]] = {
            str(names[start]): (int(start), int(end - start)) for start, end in zip(starts, ends, strict=True)
        }
        """Product -> first row and number of rows."""

    @property
    def products(self) -> list[str]:
        """Names of the products, sorted."""
        return sorted(self.rows)


def _path(stac: Any) -> str:
    return str(stac.get_self_href()).lstrip("/")


def _json(stac: Any) -> bytes:
    return _dump(stac.to_dict(include_self_link=False))


def _dump(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _file_fields(written: Written | None) -> dict[str, Any]:
    # 1220: multihash prefix of sha2-256 with 32 bytes.
    return {} if written is None else {"file:size": written.nbytes, "file:checksum": f"1220{written.sha256}"}


# -- the dataset's collection ----------------------------------------------------------------------


def _collection(
    table: pa.Table, summary: _Summary, modalities: Sequence[str], objects: Mapping[str, Written]
) -> pystac.Collection:
    def distinct(name: str) -> list[str]:
        return sorted(pc.unique(table.column(name).combine_chunks().dictionary_decode()).to_pylist())

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
            **_file_fields(objects.get("patches.parquet")),
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
            "item_assets": {"zarr": _zarr_definition(modalities or ("s2", "s1", "map"))},
        },
    )
    names = (
        "classification",
        "eo",
        "file",
        "processing",
        "projection",
        "raster",
        "scientific",
        "table",
        "version",
    )
    collection.stac_extensions = [*map(extension, names), REBEN_EXTENSION]
    for rel, href, title in (
        (
            "license",
            "https://cdla.dev/permissive-1-0/",
            "Community Data License Agreement - Permissive - Version 1.0",
        ),
        ("cite-as", f"https://doi.org/{DOI}", "The published archives"),
        ("about", "https://bigearth.net", "BigEarthNet"),
    ):
        collection.add_link(pystac.Link(rel, href, "text/html", title))
    return collection


def _decoded(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _zarr_definition(modalities: Sequence[str]) -> dict[str, Any]:
    """The Zarr asset that every product of a root has, with the classes of its reference map."""
    return {
        "title": "All patches of the product",
        "type": ZARR_TYPE,
        "roles": ["data"],
        "bands": zarr_bands(modalities),
        **({"classification:classes": clc_classes()} if "map" in modalities else {}),
    }


def clc_classes() -> list[dict[str, Any]]:
    """The values of a reference map: 44 CORINE codes and 999, with names and colours."""
    return [
        {
            "value": entry.code,
            "name": "unlabelled" if entry.code == MAP_UNLABELLED else f"clc_{entry.code}",
            "title": entry.name,
            "description": entry.label or "none of the 19 classes",
            "color_hint": entry.color.lstrip("#").upper(),
            **({"nodata": True} if entry.code == MAP_UNLABELLED else {}),
        }
        for entry in CLC.values()
    ]


def zarr_bands(modalities: Sequence[str]) -> list[dict[str, Any]]:
    """STAC bands of a product's Zarr group, named ``array[dimension=band]``."""
    bands: list[dict[str, Any]] = []
    for array in (name for m in modalities for name in zarr.arrays_of(m)):
        for name in ARRAYS.get(array, ()):
            band = BANDS[name]
            found: dict[str, Any] = {
                "name": f"{array}[{zarr.PIXEL_ARRAYS[array].dims[1]}={name}]",
                "data_type": band.dtype,
                "gsd": band.resolution_m,
            }
            if band.sensor == "s2":
                if band.common_name:
                    found["eo:common_name"] = band.common_name
                found["eo:center_wavelength"] = band.center_wavelength_um
                found["eo:full_width_half_max"] = band.full_width_um
                found["raster:scale"] = 0.0001
            else:
                found["unit"] = "dB"
            found["raster:spatial_resolution"] = band.resolution_m
            bands.append(found)
    if "map" in modalities:
        bands.append({"name": zarr.REFERENCE_MAP, "data_type": "uint16", "gsd": 10, "nodata": MAP_UNLABELLED})
    return bands


# -- products --------------------------------------------------------------------------------------


def _product_item(
    table: pa.Table,
    product: str,
    summary: _Summary,
    modalities: Sequence[str],
    objects: Mapping[str, Written],
) -> pystac.Item:
    rows = table.slice(*summary.rows[product])
    squares = np.asarray(rows.column("proj:bbox").combine_chunks().flatten().to_numpy()).reshape(-1, 4)
    bounds = [*squares[:, :2].min(axis=0).tolist(), *squares[:, 2:].max(axis=0).tolist()]
    code = rows.column("proj:code")[0].as_py()
    ring = _lonlat_ring(code, bounds)
    s1_times = pc.min_max(rows.column("reben:s1_datetime")).as_py()
    item = pystac.Item(
        product,
        {"type": "Polygon", "coordinates": [ring]},
        [
            min(x for x, _ in ring),
            min(y for _, y in ring),
            max(x for x, _ in ring),
            max(y for _, y in ring),
        ],
        rows.column("datetime")[0].as_py(),
        {
            "title": product,
            "platform": rows.column("platform")[0].as_py(),
            "constellation": "sentinel-2",
            "instruments": ["msi"],
            "gsd": 10,
            "proj:code": code,
            "proj:bbox": bounds,
            "proj:shape": [int(bounds[3] - bounds[1]) // 10, int(bounds[2] - bounds[0]) // 10],
            "proj:transform": [10, 0, bounds[0], 0, -10, bounds[3]],
            "grid:code": rows.column("grid:code")[0].as_py(),
            "sat:relative_orbit": int(product[34:37]),
            "reben:num_patches": rows.num_rows,
            "reben:split_counts": _counts(rows.column("reben:split"), SPLITS),
            "reben:label_counts": _counts(pc.list_flatten(rows.column("reben:labels")), CLASSES),
            "reben:countries": sorted(
                pc.unique(pc.cast(rows.column("reben:country"), pa.string())).to_pylist()
            ),
            **(
                {"reben:s1_interval": [rfc3339(s1_times["min"]), rfc3339(s1_times["max"])]}
                if s1_times["min"]
                else {}
            ),
        },
    )
    names = ["projection", "grid", "sat"]
    if modalities:
        item.add_asset("zarr", _zarr_asset(product, rows.num_rows, modalities))
        names += ["datacube", "eo", "raster", "zarr"]
        # rel "store" points at the store's root, which here is the asset's group itself.
        item.add_link(pystac.Link("store", f"../../zarr/{product}.zarr", ZARR_TYPE, "Zarr store"))
    if "s2" in modalities:
        bands = [band["name"] for band in zarr_bands(modalities)]
        item.properties["renders"] = {
            "true-color": {
                "title": "True colour",
                "assets": ["zarr"],
                "bidx": [bands.index(f"s2_10m[band={band}]") + 1 for band in TRUE_COLOR],
                "rescale": [[0, BRIGHTEST]] * 3,
                "color_formula": f"gamma RGB {GAMMA}",
            }
        }
        names.append("render")
    if "s1" in modalities:
        item.assets["zarr"].extra_fields |= {
            "sar:instrument_mode": "IW",
            "sar:frequency_band": "C",
            "sar:center_frequency": 5.405,
            "sar:polarizations": ["VV", "VH"],
        }
        names.append("sar")
    thumbnail = thumbnail_path(product)
    if thumbnail in objects:
        item.add_asset(
            "thumbnail",
            pystac.Asset(
                "./thumbnail.png",
                "True colour",
                None,
                "image/png",
                ["thumbnail"],
                _file_fields(objects[thumbnail]),
            ),
        )
        names.append("file")
    item.stac_extensions = [*map(extension, sorted(names)), REBEN_EXTENSION]
    return item


def _counts(column: Any, order: Sequence[str]) -> dict[str, int]:
    found = {c["values"]: c["counts"] for c in pc.value_counts(pc.cast(column, pa.string())).to_pylist()}
    return {name: found[name] for name in order if name in found}


def _zarr_asset(product: str, num_patches: int, modalities: Sequence[str]) -> pystac.Asset:
    arrays = {name: zarr.PIXEL_ARRAYS[name] for m in modalities for name in zarr.arrays_of(m)}
    dimensions: dict[str, Any] = {}
    for name, array in arrays.items():
        for dim, size in zip(array.dims, (num_patches, *array.shape), strict=True):
            if dim.startswith(("band", "polarization")):
                dimensions[dim] = {"type": "bands", "values": list(ARRAYS[name])}
            else:
                kind = "patch" if dim == "patch" else "pixel"
                dimensions[dim] = {"type": kind, "extent": [0, size - 1], "step": 1}
    return pystac.Asset(
        f"../../zarr/{product}.zarr",
        title=f"{num_patches:,} patches of {product}",
        media_type=ZARR_TYPE,
        roles=["data"],
        extra_fields={
            "zarr:consolidated": True,
            "zarr:node_type": "group",
            "zarr:zarr_format": 3,
            "bands": zarr_bands(modalities),
            "cube:dimensions": dimensions,
            "cube:variables": {
                name: {"dimensions": list(array.dims), "type": "data", "unit": array.units}
                for name, array in arrays.items()
            },
        },
    )


def _lonlat_ring(code: str, bounds: Sequence[float]) -> list[list[float]]:
    """A projected box as a counterclockwise ring, with points along the edges, which curve by up to 300 m."""
    from pyproj import Transformer

    box = shapely.segmentize(shapely.box(*bounds, ccw=True), 30_000)
    x, y = shapely.get_coordinates(box).T
    lon, lat = Transformer.from_crs(code, 4326, always_xy=True).transform(x, y)
    return np.round(np.stack([lon, lat], axis=1), 6).tolist()  # type: ignore[no-any-return]


# -- shards ----------------------------------------------------------------------------------------


def _shard_collection(
    summary: _Summary, manifest: Mapping[str, Any], objects: Mapping[str, Written]
) -> pystac.Collection:
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
    collection.add_link(
        pystac.Link("license", "https://cdla.dev/permissive-1-0/", "text/html", "The licence")
    )
    for group, sizes in manifest["groups"].items():
        for modality in manifest["modalities"]:
            collection.add_item(_shard_item(f"{group}-{modality}", group, modality, sizes, summary, objects))
    return collection


def _shard_item(
    name: str,
    group: str,
    modality: str,
    sizes: Mapping[str, int],
    summary: _Summary,
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
            pystac.Asset(f"../../{path}", None, None, TAR_TYPE, ["data"], _file_fields(objects[path])),
        )
    item.stac_extensions = [extension("file"), REBEN_EXTENSION]
    return item


# -- Croissant -------------------------------------------------------------------------------------


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
        "datePublished": "2024-07-01",
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
