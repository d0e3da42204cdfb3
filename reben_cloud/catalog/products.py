"""STAC Items of Sentinel-2 products: where and when, what the Zarr group holds, how to look at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pystac
import shapely

from reben_cloud.bigearthnet.bands import ARRAYS, BANDS, MAP_UNLABELLED
from reben_cloud.bigearthnet.labels import CLASSES, CLC
from reben_cloud.bigearthnet.picture import BRIGHTEST, GAMMA, TRUE_COLOR
from reben_cloud.catalog.terms import ZARR_TYPE, Written, extension, file_fields
from reben_cloud.formats import zarr
from reben_cloud.root.layout import COLLECTION_ID
from reben_cloud.root.patches import REBEN_EXTENSION, rfc3339
from reben_cloud.root.placement import SPLITS


class Summary:
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


def thumbnail_path(product: str) -> str:
    """Where the true-colour picture of a product lies in a root."""
    return f"{COLLECTION_ID}/{product}/thumbnail.png"


def product_item(
    table: pa.Table,
    product: str,
    summary: Summary,
    modalities: Sequence[str],
    objects: Mapping[str, Written],
) -> pystac.Item:
    """The Item of a product."""
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
        names += ["datacube", "zarr", *band_extensions(modalities)]
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
                file_fields(objects[thumbnail]),
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


def zarr_definition(modalities: Sequence[str]) -> dict[str, Any]:
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


def band_extensions(modalities: Sequence[str]) -> list[str]:
    """The extensions of the fields that `zarr_bands` of these have; one too many is invalid."""
    return sorted(
        {name for m in modalities for name in {"s2": ("eo", "raster"), "s1": ("raster",)}.get(m, ())}
    )


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
