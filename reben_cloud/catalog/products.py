"""STAC Items of products: where and when, what the Zarr group holds, how to look at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pystac
import shapely

from reben_cloud.about import About, Render
from reben_cloud.catalog.groups import asset_fields, band_name, cube_fields, group_bands, group_extensions
from reben_cloud.catalog.terms import ZARR_TYPE, Written, extensions, extensions_of, file_fields
from reben_cloud.root import layout
from reben_cloud.root.metadata import rfc3339
from reben_cloud.root.placement import SPLITS
from reben_cloud.schema import Schema


class Summary:
    """What the documents say of all patches and of each product."""

    def __init__(self, table: pa.Table) -> None:
        bbox = table.column(layout.BBOX).combine_chunks()
        self.bbox = [
            float(reduce(bbox.field(side)).as_py())
            for side, reduce in (("xmin", pc.min), ("ymin", pc.min), ("xmax", pc.max), ("ymax", pc.max))
        ]
        """West, south, east, north."""
        times = pc.min_max(table.column(layout.DATETIME)).as_py()
        self.interval: tuple[datetime, datetime] = (times["min"], times["max"])
        """First and last Sentinel-2 acquisition."""
        names = (
            table.column(layout.PRODUCT).combine_chunks().dictionary_decode().to_numpy(zero_copy_only=False)
        )
        starts = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]]))
        ends = np.append(starts[1:], len(names))
        self.rows: dict[str, tuple[int, int]] = {
            str(names[start]): (int(start), int(end - start)) for start, end in zip(starts, ends, strict=True)
        }
        """Product -> first row and number of rows."""
        self.has_countries = layout.COUNTRY in table.column_names
        """Whether the metadata say in which country a patch is."""

    @property
    def products(self) -> list[str]:
        """Names of the products, sorted."""
        return sorted(self.rows)


def pixel_sizes(schema: Schema) -> list[float]:
    """Sizes of the pixels of all images, metres, ascending."""
    return sorted({t.pixel_m for m in schema.modalities for t in m.tensors if t.pixel_m is not None})


def product_item(
    table: pa.Table,
    product: str,
    summary: Summary,
    schema: Schema,
    facts: About,
    objects: Mapping[str, Written],
    *,
    has_pixels: bool,
) -> pystac.Item:
    """The Item of a product."""
    rows = table.slice(*summary.rows[product])
    squares = np.asarray(rows.column("proj:bbox").combine_chunks().flatten().to_numpy()).reshape(-1, 4)
    bounds = [*squares[:, :2].min(axis=0).tolist(), *squares[:, 2:].max(axis=0).tolist()]
    ring = _lonlat_ring(rows.column("proj:code")[0].as_py(), bounds)
    lons, lats = zip(*ring, strict=True)
    properties = {
        "title": product,
        **_first(rows, "platform"),
        **acquisition_fields(facts),
        **_raster(rows, bounds, schema),
        **_first(rows, "grid:code"),
        **({} if facts.orbit is None else {"sat:relative_orbit": int(product[facts.orbit])}),
        **_counts_of(rows, facts.class_order or schema.classes.names),
    }
    item = pystac.Item(
        product,
        {"type": "Polygon", "coordinates": [ring]},
        [min(lons), min(lats), max(lons), max(lats)],
        rows.column(layout.DATETIME)[0].as_py(),
        properties,
    )
    names = {"projection"} | (extensions_of(properties) & {"grid", "sat"})
    if has_pixels:
        names |= _add_group(item, product, rows.num_rows, schema, facts)
    names |= _add_thumbnail(item, product, facts, objects)
    item.stac_extensions = extensions(names, facts)
    return item


def acquisition_fields(facts: About) -> dict[str, Any]:
    """Fields that every product has."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in facts.acquisition.items()}


def _first(rows: pa.Table, name: str) -> dict[str, Any]:
    """What all patches of a product share, where the metadata say it."""
    return {name: rows.column(name)[0].as_py()} if name in rows.column_names else {}


def _raster(rows: pa.Table, bounds: Sequence[float], schema: Schema) -> dict[str, Any]:
    """Place of the product, as a raster of its finest pixels where it has any."""
    step = min(pixel_sizes(schema), default=None)
    west, south, east, north = bounds
    found: dict[str, Any] = {} if step is None else {"gsd": step}
    found |= {"proj:code": rows.column("proj:code")[0].as_py(), "proj:bbox": list(bounds)}
    if step is not None:
        found["proj:shape"] = [round((north - south) / step), round((east - west) / step)]
        found["proj:transform"] = [step, 0, west, 0, -step, north]
    return found


def _counts_of(rows: pa.Table, classes: Sequence[str]) -> dict[str, Any]:
    """Patches, splits, labels, countries and Sentinel-1 times of a product."""
    found: dict[str, Any] = {
        layout.column("num_patches"): rows.num_rows,
        layout.column("split_counts"): _counts(rows.column(layout.SPLIT), SPLITS),
        layout.column("label_counts"): _counts(pc.list_flatten(rows.column(layout.LABELS)), classes),
    }
    if layout.COUNTRY in rows.column_names:
        countries = pc.unique(pc.cast(rows.column(layout.COUNTRY), pa.string())).to_pylist()
        found[layout.column("countries")] = sorted(countries)
    if layout.S1_DATETIME in rows.column_names:
        times = pc.min_max(rows.column(layout.S1_DATETIME)).as_py()
        if times["min"]:
            found[layout.column("s1_interval")] = [rfc3339(times["min"]), rfc3339(times["max"])]
    return found


def _counts(column: Any, order: Sequence[str]) -> dict[str, int]:
    found = {c["values"]: c["counts"] for c in pc.value_counts(pc.cast(column, pa.string())).to_pylist()}
    return {name: found[name] for name in order if name in found}


def _add_group(item: pystac.Item, product: str, num_patches: int, schema: Schema, facts: About) -> set[str]:
    """Add the product's Zarr group and how to look at it; returns the extensions that it takes."""
    href = f"../../{layout.zarr_store(product)}"
    fields = asset_fields(schema, facts)
    asset = pystac.Asset(
        href,
        title=f"{num_patches:,} patches of {product}",
        media_type=ZARR_TYPE,
        roles=["data"],
        extra_fields={
            "zarr:consolidated": True,
            "zarr:node_type": "group",
            "zarr:zarr_format": 3,
            "bands": group_bands(schema, facts),
            **cube_fields(schema, num_patches),
            **fields,
        },
    )
    item.add_asset("zarr", asset)
    # rel "store" points at the store's root, which here is the asset's group itself.
    item.add_link(pystac.Link("store", href, ZARR_TYPE, "Zarr store"))
    names = {"datacube", "zarr"} | group_extensions(schema, facts) | extensions_of(fields)
    bands = [band["name"] for band in asset.extra_fields["bands"]]
    renders = {r.name: shown for r in facts.renders if (shown := _render(r, schema, bands)) is not None}
    if renders:
        item.properties["renders"] = renders
        names.add("render")
    return names


def _render(render: Render, schema: Schema, bands: Sequence[str]) -> dict[str, Any] | None:
    """A picture as the render extension has it; None where the bands are not there, or it needs arithmetic."""
    found = render.array_in(schema)
    if found is None or any(channel.minus for channel in render.channels):
        return None
    _, array = found
    return {
        "title": render.title,
        "assets": ["zarr"],
        "bidx": [bands.index(band_name(array, channel.tensor)) + 1 for channel in render.channels],
        "rescale": [[channel.low, channel.high] for channel in render.channels],
        "color_formula": f"gamma RGB {render.gamma}",
    }


def _add_thumbnail(item: pystac.Item, product: str, facts: About, objects: Mapping[str, Written]) -> set[str]:
    render = facts.thumbnail
    path = layout.thumbnail(facts.collection, product)
    if render is None or path not in objects:
        return set()
    href = f"./{path.rpartition('/')[2]}"
    fields = file_fields(objects[path])
    item.add_asset("thumbnail", pystac.Asset(href, render.title, None, "image/png", ["thumbnail"], fields))
    return extensions_of(fields)


def _lonlat_ring(code: str, bounds: Sequence[float]) -> list[list[float]]:
    """A projected box as a counterclockwise ring, with points along the edges, which curve by up to 300 m."""
    from pyproj import Transformer

    box = shapely.segmentize(shapely.box(*bounds, ccw=True), 30_000)
    x, y = shapely.get_coordinates(box).T
    lon, lat = Transformer.from_crs(code, 4326, always_xy=True).transform(x, y)
    return np.round(np.stack([lon, lat], axis=1), 6).tolist()  # type: ignore[no-any-return]
