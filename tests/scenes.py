"""Makes Sentinel scenes, CORINE layers and v1 tables that look like the real ones, at any size.

Pixel values are computed from (band, y, x), so that a patch shows where it was cut.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import rasterio
import shapely
from rasterio.transform import from_origin

from reben_cloud import grid
from reben_cloud.bigearthnet.bands import BANDS

PRODUCT = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
BANDS_S2 = [name for name, band in BANDS.items() if band.sensor == "s2"]

PRODUCT_XML = """<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>{start}</PRODUCT_START_TIME>
      <PRODUCT_URI>{name}_{generation}.SAFE</PRODUCT_URI>
      <PROCESSING_LEVEL>Level-2A</PROCESSING_LEVEL>
      <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
      <Product_Organisation><Granule_List><Granule granuleIdentifier="{granule}">
{images}
      </Granule></Granule_List></Product_Organisation>
    </Product_Info>
    <Product_Image_Characteristics>
      <Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
      <Special_Values><SPECIAL_VALUE_TEXT>SATURATED</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>65535</SPECIAL_VALUE_INDEX></Special_Values>
      <QUANTIFICATION_VALUES_LIST>
        <BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>
      </QUANTIFICATION_VALUES_LIST>
{offsets}
    </Product_Image_Characteristics>
  </n1:General_Info>
  <n1:Quality_Indicators_Info><Quality_Control_Checks><Quality_Inspections>
{checks}
  </Quality_Inspections></Quality_Control_Checks></n1:Quality_Indicators_Info>
</n1:Level-2A_User_Product>
"""

TILE_XML = """<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-2A_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/S2_PDI_Level-2A_Tile_Metadata.xsd">
  <n1:General_Info>
    <TILE_ID>S2A_OPER_MSI_L2A_TL_VGS4_20240101T000000_A010310_T{square}_N99.99</TILE_ID>
    {datastrip}
    <SENSING_TIME>{sensed}</SENSING_TIME>
  </n1:General_Info>
  <n1:Geometric_Info><Tile_Geocoding metadataLevel="Brief">
    <HORIZONTAL_CS_NAME>WGS84 / UTM zone</HORIZONTAL_CS_NAME>
    <HORIZONTAL_CS_CODE>EPSG:{epsg}</HORIZONTAL_CS_CODE>
{sizes}
  </Tile_Geocoding></n1:Geometric_Info>
</n1:Level-2A_Tile_ID>
"""

PASSED = {
    f"{c}": "PASSED"
    for c in (
        "FORMAT_CORRECTNESS",
        "GENERAL_QUALITY",
        "GEOMETRIC_QUALITY",
        "RADIOMETRIC_QUALITY",
        "SENSOR_QUALITY",
    )
}


def band_pixels(name: str, shape: tuple[int, int]) -> np.ndarray:
    """Every pixel of a band tells its band and, modulo 240, its row and column; never 0."""
    y, x = np.indices(shape, dtype=np.uint32)
    return (1 + BANDS_S2.index(name) * 5000 + (y * 17 + x * 3) % 4999).astype(np.uint16)


def write_jp2(
    path: Path, pixels: np.ndarray, *, epsg: int, left: float, top: float, pixel_m: float, **options: Any
) -> None:
    """A lossless JP2, tiled like the real ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", height=pixels.shape[0], width=pixels.shape[1], count=1, dtype=pixels.dtype,
        crs=f"EPSG:{epsg}", transform=from_origin(left, top, pixel_m, pixel_m),
        QUALITY=100, REVERSIBLE="YES", **options,
    ) as file:  # fmt: skip
        file.write(pixels, 1)


def make_safe(
    folder: Path, *, name: str = PRODUCT, side_m: int = 6600, checks: dict[str, str] | None = None,
    offset: int = 0, pixels: Any = band_pixels, scl: Any = None, cld: Any = None, datastrip: str = "",
    generation: str = "20240101T000000",
) -> Path:  # fmt: skip
    """A Level-2A product of `side_m` metres (a real one has 109,800), the north-west corner of its tile.

    Scene classification and cloud probability, uint8 of 20 m pixels, are there if they are given; so is the start of
    its datastrip.
    """
    square, time = name[39:44], name[11:26]
    epsg, left, top = grid.tile_corner(square)
    safe = folder / f"{name}_{generation}.SAFE"
    granule = f"L2A_T{square}_A010310_{time}"
    listed = []
    for band in BANDS_S2:
        for resolution in (r for r in (10, 20, 60) if r >= BANDS[band].resolution_m):
            listed.append(f"GRANULE/{granule}/IMG_DATA/R{resolution}m/T{square}_{time}_{band}_{resolution}m")
            if resolution == BANDS[band].resolution_m:
                write_jp2(
                    safe / f"{listed[-1]}.jp2", pixels(band, (side_m // resolution,) * 2),
                    epsg=epsg, left=left, top=top, pixel_m=resolution,
                )  # fmt: skip
    listed.append(f"GRANULE/{granule}/IMG_DATA/R20m/T{square}_{time}_SCL_20m")
    quality = safe / "GRANULE" / granule / "QI_DATA" / "MSK_CLDPRB_20m.jp2"
    for path, mask in ((safe / f"{listed[-1]}.jp2", scl), (quality, cld)):
        if mask is not None:
            write_jp2(path, mask.astype(np.uint8), epsg=epsg, left=left, top=top, pixel_m=20)
    start = f"{time[:4]}-{time[4:6]}-{time[6:8]}T{time[9:11]}:{time[11:13]}:{time[13:]}.026Z"
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{i}">{offset}</BOA_ADD_OFFSET>' for i in range(13))
    (safe / "MTD_MSIL2A.xml").write_text(
        PRODUCT_XML.format(
            start=start,
            name=name,
            generation=generation,
            granule=granule,
            baseline=f"{name[28:30]}.{name[30:32]}",
            images="\n".join(f"<IMAGE_FILE>{image}</IMAGE_FILE>" for image in listed),
            # Products from baseline 04.00 on always say it.
            offsets=f"<BOA_ADD_OFFSET_VALUES_LIST>{offsets}</BOA_ADD_OFFSET_VALUES_LIST>"
            if offset or "0400" <= name[28:32] < "9999"
            else "",
            checks="\n".join(
                f'<quality_check checkType="{k}">{v}</quality_check>'
                for k, v in (PASSED | (checks or {})).items()
            ),
        )
    )
    sizes = "".join(
        f'<Size resolution="{r}"><NROWS>{side_m // r}</NROWS><NCOLS>{side_m // r}</NCOLS></Size>'
        f'<Geoposition resolution="{r}"><ULX>{left}</ULX><ULY>{top}</ULY>'
        f"<XDIM>{r}</XDIM><YDIM>-{r}</YDIM></Geoposition>"
        for r in (10, 20, 60)
    )
    (safe / "GRANULE" / granule / "MTD_TL.xml").write_text(
        TILE_XML.format(
            epsg=epsg,
            sizes=sizes,
            square=square,
            sensed=start,
            datastrip=datastrip
            and f"<DATASTRIP_ID>S2A_OPER_MSI_L2A_DS_VGS4_{generation}_S{datastrip}_N99.99</DATASTRIP_ID>",
        )
    )
    return safe


def make_clc(
    path: Path, polygons: Any, codes: Any, *, crs: str | None = "EPSG:3035", column: str = "Code_18",
    epsg: int = 32633,
) -> Path:  # fmt: skip
    """A CORINE GeoPackage as the official one: polygons given in UTM, stored in EPSG:3035."""
    to = pyproj.Transformer.from_crs(epsg, crs or 3035, always_xy=True).transform
    stored = shapely.transform(
        np.asarray(polygons, object), lambda xy: np.column_stack(to(xy[:, 0], xy[:, 1]))
    )
    ids = np.array([f"EU_{i}" for i in range(len(stored))], object)
    pyogrio.raw.write(
        path, shapely.to_wkb(stored), [np.array([str(c) for c in codes], object), ids, np.full(len(stored), 25.0)],
        [column, "ID", "Area_Ha"], layer="U2018_CLC2018_V2020_20u1", driver="GPKG", crs=crs,
        geometry_type="MultiPolygon", promote_to_multi=True,
    )  # fmt: skip
    return path


def make_landscape(folder: Path, *, patches: int = 8) -> Path:
    """A small product, a radar scene of the same days and land cover, which fit each other and look like something.

    Args:
        folder: Where ``s2/``, ``s1/`` and ``clc.gpkg`` go.
        patches: Patches along the side.
    """
    rng = np.random.default_rng(7)
    epsg, left, top = grid.tile_corner(PRODUCT[39:44])
    side = patches * 120
    # Land cover: cells around random points; water, forests, fields, a town.
    codes = np.array([211, 211, 231, 312, 313, 311, 242, 112, 512])
    centres = rng.uniform(0, side, (60, 2))
    cover = rng.choice(codes, len(centres))
    bounds = shapely.box(left, top - side * 10, left + side * 10, top)
    points = shapely.multipoints(np.column_stack([left + centres[:, 0] * 10, top - centres[:, 1] * 10]))
    cells = shapely.get_parts(shapely.voronoi_polygons(points, extend_to=bounds))
    tree = shapely.STRtree(cells)
    order = tree.query_nearest(shapely.get_parts(points), all_matches=False)[1]
    polygons = shapely.intersection(cells[order], shapely.buffer(bounds, 500))
    make_clc(folder / "clc.gpkg", shapely.segmentize(polygons, 100), cover, epsg=epsg)

    y, x = np.indices((side, side), dtype=np.float32)
    nearest = np.zeros((side, side), np.int64)
    smallest = np.full((side, side), np.inf, np.float32)
    for number, (cx, cy) in enumerate(centres.astype(np.float32)):
        distance = (x - cx) ** 2 + (y - cy) ** 2
        nearest[distance < smallest] = number
        np.minimum(smallest, distance, out=smallest)
    fields = (np.sin(x / 9 + nearest) * np.cos(y / 13 - nearest) > 0) * 0.25 + 0.9
    noise = rng.normal(1, 0.05, (side, side))
    # Reflectance * 10,000 in blue, green, red and near infrared, and backscatter in dB, of each cover.
    looks = {
        211: (700, 950, 1100, 2600, -11), 231: (450, 850, 500, 4200, -12), 311: (250, 550, 300, 4500, -9),
        312: (200, 350, 220, 2600, -9), 313: (220, 450, 260, 3500, -9), 242: (600, 900, 850, 2900, -11),
        112: (1100, 1200, 1300, 2100, -5), 512: (350, 300, 200, 120, -21),
    }  # fmt: skip
    by_cell = np.array([looks[code] for code in cover.tolist()], np.float32)
    columns = {"B02": 0, "B03": 1, "B04": 2}

    def pixels(band: str, shape: tuple[int, int]) -> np.ndarray:
        step = side // shape[0]
        value = by_cell[nearest, columns.get(band, 3)] * fields * noise
        return np.clip(value[::step, ::step], 1, 10_000).astype(np.uint16)

    (folder / "s2").mkdir()
    make_safe(folder / "s2", side_m=side * 10, pixels=pixels)
    (folder / "s1").mkdir()
    vv = by_cell[nearest, 4] + rng.normal(0, 1.5, (side, side))
    with rasterio.open(
        folder / "s1" / "S1A_IW_GRDH_1SDV_20170613T165043_VV_VH.tif", "w", driver="GTiff", height=side, width=side,
        count=2, dtype="float32", crs=f"EPSG:{epsg}", transform=from_origin(left, top, 10, 10), nodata=np.nan,
    ) as file:  # fmt: skip
        file.write(np.stack([vv, vv - 7]).astype(np.float32))
    return folder


def make_radar(folder: Path, *, product: str, side_m: int, scene: str) -> Path:
    """A terrain-corrected scene in dB on the grid of a product's tile, VV and VH, each pixel by its row and column."""
    folder.mkdir(parents=True, exist_ok=True)
    epsg, left, top = grid.tile_corner(product[39:44])
    side = side_m // 10
    y, x = np.indices((side, side), dtype=np.float32)
    vv = -12 + (y % 97) / 100 + (x % 89) / 1000
    path = folder / f"{scene}_VV_VH.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=2, dtype="float32", crs=f"EPSG:{epsg}",
        transform=from_origin(left, top, 10, 10), nodata=np.nan,
    ) as file:  # fmt: skip
        file.write(np.stack([vv, vv - 7]))
    return path


WORLD_DEGREES = 1 / 12_000
"""Pixel of ESA WorldCover and of LCFM, 9.3 m of latitude."""


def make_world_raster(
    path: Path, *, product: str, side_m: int, codes: Any, cell_px: int = 40, dtype: str = "uint8", nodata: Any = 0,
    margin_px: int = 50,
) -> Path:  # fmt: skip
    """Land cover in degrees, as WorldCover has it: cells of random codes about the north-west of a tile."""
    epsg, left, top = grid.tile_corner(product[39:44])
    box = shapely.segmentize(shapely.box(left, top - side_m, left + side_m, top), side_m / 20)
    to_lonlat = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform
    west, south, east, north = shapely.bounds(shapely.transform(box, to_lonlat, interleaved=False))
    first_column, first_row = int(west / WORLD_DEGREES) - margin_px, int(-north / WORLD_DEGREES) - margin_px
    columns = int(east / WORLD_DEGREES) + margin_px - first_column
    rows = int(-south / WORLD_DEGREES) + margin_px - first_row
    rng = np.random.default_rng(11)
    cells = rng.choice(np.asarray(codes, dtype), (rows // cell_px + 1, columns // cell_px + 1))
    pixels = cells.repeat(cell_px, 0).repeat(cell_px, 1)[:rows, :columns]
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=rows, width=columns, count=1, dtype=dtype, crs="EPSG:4326", nodata=nodata,
        transform=from_origin(first_column * WORLD_DEGREES, -first_row * WORLD_DEGREES, WORLD_DEGREES, WORLD_DEGREES),
        tiled=True, blockxsize=256, blockysize=256, compress="deflate",
    ) as file:  # fmt: skip
        file.write(pixels, 1)
    return path


KENYA = "S2A_MSIL2A_20240115T074231_N0510_R092_T37MBU"
CHILE = "S2B_MSIL2A_20240120T143729_N0510_R096_T19HCC"
ABROAD_M = 9_660
"""Side of the products of `make_abroad`: four patches of 2400 m and a rest."""


def make_abroad(folder: Path, *, codes: Any = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)) -> Path:
    """Products of Kenya and of Chile, each with a radar scene and a map of land cover in degrees, and their countries.

    Args:
        folder: Where ``products``, ``radar``, ``cover`` and ``countries.geojson`` go.
        codes: Codes of the land cover.
    """
    for product, scene in ((KENYA, "20240114T155001"), (CHILE, "20240119T235902")):
        y, x = np.indices((ABROAD_M // 20,) * 2)
        # A cloud over the north-west, its shadow beside it, snow in the south, and else vegetation.
        scl = np.select([(y < 100) & (x < 90), (y < 100) & (x < 130), y > 440], [9, 3, 11], 4)
        make_safe(folder / "products", name=product, side_m=ABROAD_M, scl=scl)
        make_world_raster(
            folder / "cover" / f"{product[38:44]}.tif", product=product, side_m=ABROAD_M, codes=codes
        )
        make_radar(folder / "radar", product=product, side_m=ABROAD_M, scene=f"S1A_IW_GRDH_1SDV_{scene}")
    make_countries(folder / "countries.geojson", {"Kenya": (33, -5, 42, 5), "Chile": (-76, -56, -66, -17)})
    return folder


def make_countries(path: Path, boxes: dict[str, tuple[float, float, float, float]]) -> Path:
    """A file like Natural Earth's, of boxes: west, south, east, north, degrees."""
    features = [
        {"properties": {"NAME_LONG": name}, "geometry": shapely.geometry.mapping(shapely.box(*box))}
        for name, box in boxes.items()
    ]
    path.write_text(json.dumps({"features": features}))
    return path
