"""Makes a Sentinel-1 GRD product of a few kilometres as a satellite on a circular orbit would see flat land.

Every pixel is computed forwards, from the place on the ground that it looks at, so that a program which goes back from
the ground to the image by orbit, time and height must find what is there.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
from rasterio.control import GroundControlPoint

C_M_S = 299_792_458.0
ORBIT_M = 7_071_000.0
"""Radius of the orbit: 700 km above the ground."""
SPEED_M_S = 7_590.0
INCIDENCE = np.deg2rad(38.0)
"""Of the radar's beam in the middle of the image."""
HEADING = np.deg2rad(193.0)
"""Direction of flight from north by east: a descending pass of the middle latitudes."""
BETA_LUT = 474.0
"""Digital number of a beta nought of 1."""
LUTS = ("sigmaNought", "betaNought", "gamma", "dn")

MANIFEST = """<?xml version="1.0" encoding="UTF-8"?>
<xfdu:XFDU xmlns:xfdu="urn:ccsds:schema:xfdu:1" xmlns:safe="http://www.esa.int/safe/sentinel-1.0"
  xmlns:s1="http://www.esa.int/safe/sentinel-1.0/sentinel-1"
  xmlns:s1sarl1="http://www.esa.int/safe/sentinel-1.0/sentinel-1/sar/level-1" xmlns:gml="http://www.opengis.net/gml">
 <metadataSection>
  <safe:platform><safe:familyName>SENTINEL-1</safe:familyName><safe:number>A</safe:number>
   <s1sarl1:instrumentMode><s1sarl1:mode>IW</s1sarl1:mode><s1sarl1:swath>IW</s1sarl1:swath></s1sarl1:instrumentMode>
  </safe:platform>
  <safe:orbitReference><safe:orbitNumber type="start">17015</safe:orbitNumber>
   <safe:orbitNumber type="stop">17015</safe:orbitNumber>
   <safe:relativeOrbitNumber type="start">118</safe:relativeOrbitNumber>
   <safe:relativeOrbitNumber type="stop">118</safe:relativeOrbitNumber>
   <s1:pass>DESCENDING</s1:pass><s1:ascendingNodeTime>{start}</s1:ascendingNodeTime></safe:orbitReference>
  <safe:acquisitionPeriod><safe:startTime>{start}</safe:startTime><safe:stopTime>{stop}</safe:stopTime>
  </safe:acquisitionPeriod>
  <s1sarl1:missionDataTakeID>116042</s1sarl1:missionDataTakeID>
  <s1sarl1:transmitterReceiverPolarisation>VV</s1sarl1:transmitterReceiverPolarisation>
  <s1sarl1:transmitterReceiverPolarisation>VH</s1sarl1:transmitterReceiverPolarisation>
  <s1sarl1:productType>GRD</s1sarl1:productType>
  <gml:coordinates>{outline}</gml:coordinates>
 </metadataSection>
 <dataObjectSection>
{objects}
 </dataObjectSection>
</xfdu:XFDU>
"""

OBJECT = '<dataObject repID="{schema}"><byteStream><fileLocation href="./{href}"/></byteStream></dataObject>'

ANNOTATION = """<?xml version="1.0" encoding="UTF-8"?>
<product>
 <generalAnnotation>
  <productInformation><pass>Descending</pass><projection>Ground Range</projection>
   <rangeSamplingRate>6.434523812571428e+07</rangeSamplingRate><radarFrequency>5.405000454334350e+09</radarFrequency>
   <azimuthSteeringRate>1.590368784e+00</azimuthSteeringRate></productInformation>
  <orbitList count="{num_vectors}">{orbits}</orbitList>
 </generalAnnotation>
 <imageAnnotation><imageInformation>
  <productFirstLineUtcTime>{first}</productFirstLineUtcTime><productLastLineUtcTime>{last}</productLastLineUtcTime>
  <ascendingNodeTime>{first}</ascendingNodeTime><slantRangeTime>{slant_time!r}</slantRangeTime>
  <rangePixelSpacing>{pixel_m!r}</rangePixelSpacing><azimuthPixelSpacing>{pixel_m!r}</azimuthPixelSpacing>
  <azimuthTimeInterval>{interval_s!r}</azimuthTimeInterval><numberOfSamples>{size}</numberOfSamples>
  <numberOfLines>{size}</numberOfLines><incidenceAngleMidSwath>{incidence!r}</incidenceAngleMidSwath>
 </imageInformation></imageAnnotation>
 <swathTiming><linesPerBurst>0</linesPerBurst><samplesPerBurst>0</samplesPerBurst><burstList count="0"/></swathTiming>
 <geolocationGrid><geolocationGridPointList count="4">{points}</geolocationGridPointList></geolocationGrid>
 <coordinateConversion><coordinateConversionList count="2">{conversions}</coordinateConversionList>
 </coordinateConversion>
</product>
"""

CALIBRATION = """<?xml version="1.0" encoding="UTF-8"?>
<calibration>
 <calibrationInformation><absoluteCalibrationConstant>1.0</absoluteCalibrationConstant></calibrationInformation>
 <calibrationVectorList count="2">{vectors}</calibrationVectorList>
</calibration>
"""


def make_grd(
    folder: Path, *, name: str, time: datetime, epsg: int, centre: tuple[float, float], height_m: float, size: int,
    beta: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]], pixel_m: float = 10.0,
) -> Path:  # fmt: skip
    """An IW GRDH product.

    Args:
        folder: Where it goes.
        name: Its name, with ``.SAFE``.
        time: When the satellite passes the centre.
        epsg: CRS of `centre` and of what `beta` gets, a UTM zone.
        centre: Easting and northing of the middle of the image, metres.
        height_m: Height of the land above the ellipsoid.
        size: Lines and samples.
        beta: Polarization -> beta nought at eastings and northings.
        pixel_m: Distance of lines and of samples on the ground.
    """
    to_lonlat = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)
    to_ecef = pyproj.Transformer.from_crs(4979, 4978, always_xy=True)
    lon, lat = to_lonlat.transform(*centre)
    ground = np.array(to_ecef.transform(lon, lat, height_m))

    # Up, forwards and to the right at the centre; the satellite passes it on the left, at right angles to its flight.
    up = ground / np.linalg.norm(ground)
    east = np.cross((0, 0, 1), up) / np.linalg.norm(np.cross((0, 0, 1), up))
    north = np.cross(up, east)
    forwards = north * np.cos(HEADING) + east * np.sin(HEADING)
    right = np.cross(forwards, up)
    away = np.cos(INCIDENCE) * up - np.sin(INCIDENCE) * right
    along = ground @ away
    slant = -along + np.sqrt(along**2 - ground @ ground + ORBIT_M**2)
    passing = (ground + slant * away) / ORBIT_M
    rate = SPEED_M_S / ORBIT_M

    def satellite(seconds: Any) -> np.ndarray:
        angle = rate * np.asarray(seconds, float)[..., None]
        return ORBIT_M * (np.cos(angle) * passing + np.sin(angle) * forwards)

    # Lines and samples of the ground on a plane through the centre that follows the Earth's curve.
    # The satellite is abreast of a point at the angle whose tangent is the point's way forwards by that to below it.
    interval_s = pixel_m / (rate * (ground @ passing))
    offsets = (np.arange(size) - (size - 1) / 2) * pixel_m
    latitude, longitude, eastings, northings = places(ground, forwards, right, offsets, height_m, epsg)
    # Where the land is when the satellite is abreast of it; the time in the middle of the image is `time`.
    times = [
        time + timedelta(seconds=float(s)) for s in (np.array([0, size - 1]) - (size - 1) / 2) * interval_s
    ]

    # Slant range -> ground range, at the middle line, as a polynomial.
    middle = np.array(
        to_ecef.transform(longitude[size // 2], latitude[size // 2], np.full(size, float(height_m)))
    ).T
    slants = np.linalg.norm(satellite((size // 2 - (size - 1) / 2) * interval_s) - middle, axis=1)
    ranges = np.arange(size) * pixel_m
    to_ground = np.polynomial.polynomial.polyfit(slants - slants[0], ranges, 3)
    to_slant = np.polynomial.polynomial.polyfit(ranges, slants, 3)

    safe = folder / name
    stem = f"s1a-iw-grd-{{}}-{name[17:32]}-{name[33:48]}-{name[49:55]}-{name[56:62]}-{{}}".lower()
    for kind in ("measurement", "annotation/calibration"):
        (safe / kind).mkdir(parents=True, exist_ok=True)
    orbits = "".join(orbit_vector(time, seconds, satellite) for seconds in range(-60, 61, 10))
    corners = [(line, sample) for line in (0, size - 1) for sample in (0, size - 1)]
    points = "".join(
        f"<geolocationGridPoint><azimuthTime>{clock(times[line > 0])}</azimuthTime>"
        f"<slantRangeTime>{float(2 * slants[sample] / C_M_S)!r}</slantRangeTime><line>{line}</line>"
        f"<pixel>{sample}</pixel><latitude>{float(latitude[line, sample])!r}</latitude>"
        f"<longitude>{float(longitude[line, sample])!r}</longitude><height>{height_m!r}</height>"
        "<incidenceAngle>38.0</incidenceAngle><elevationAngle>33.0</elevationAngle></geolocationGridPoint>"
        for line, sample in corners
    )
    gcps = [
        GroundControlPoint(
            row=line, col=sample, x=longitude[line, sample], y=latitude[line, sample], z=height_m
        )
        for line, sample in corners
    ]
    conversions = "".join(
        f"<coordinateConversion><azimuthTime>{clock(at)}</azimuthTime>"
        f"<slantRangeTime>{float(2 * slants[0] / C_M_S)!r}</slantRangeTime><sr0>{float(slants[0])!r}</sr0>"
        f'<srgrCoefficients count="4">{" ".join(map(repr, to_ground.tolist()))}</srgrCoefficients><gr0>0.0</gr0>'
        f'<grsrCoefficients count="4">{" ".join(map(repr, to_slant.tolist()))}</grsrCoefficients>'
        "</coordinateConversion>"
        # Beyond the image at both ends, as real ones are.
        for at in (times[0] - timedelta(seconds=5), times[1] + timedelta(seconds=5))
    )
    vectors = "".join(
        f"<calibrationVector><azimuthTime>{clock(times[line > 0])}</azimuthTime><line>{line}</line>"
        f'<pixel count="2">0 {size - 1}</pixel>'
        + "".join(f'<{lut} count="2">{BETA_LUT} {BETA_LUT}</{lut}>' for lut in LUTS)
        + "</calibrationVector>"
        for line in (0, size - 1)
    )  # fmt: skip
    objects = []
    for number, (polarization, of_place) in enumerate(beta.items(), 1):
        called = stem.format(polarization.lower(), f"{number:03d}")
        numbers = np.round(BETA_LUT * np.sqrt(of_place(eastings, northings))).astype(np.uint16)
        with rasterio.open(
            safe / "measurement" / f"{called}.tiff", "w", driver="GTiff", height=size, width=size, count=1,
            dtype="uint16", gcps=gcps, crs="EPSG:4326",
        ) as file:  # fmt: skip
            file.write(numbers, 1)
        (safe / "annotation" / f"{called}.xml").write_text(
            ANNOTATION.format(
                num_vectors=13, orbits=orbits, first=clock(times[0]), last=clock(times[1]), points=points, size=size,
                slant_time=float(2 * slants[0] / C_M_S), pixel_m=pixel_m, interval_s=float(interval_s),
                incidence=float(np.rad2deg(INCIDENCE)), conversions=conversions,
            )
        )  # fmt: skip
        (safe / "annotation" / "calibration" / f"calibration-{called}.xml").write_text(
            CALIBRATION.format(vectors=vectors)
        )
        for schema, href in (
            ("s1Level1ProductSchema", f"annotation/{called}.xml"),
            ("s1Level1CalibrationSchema", f"annotation/calibration/calibration-{called}.xml"),
            ("s1Level1MeasurementSchema", f"measurement/{called}.tiff"),
        ):
            objects.append(OBJECT.format(schema=schema, href=href))
    ring = [corners[i] for i in (0, 1, 3, 2)]
    outline = " ".join(f"{latitude[place]:.6f},{longitude[place]:.6f}" for place in ring)
    (safe / "manifest.safe").write_text(
        MANIFEST.format(
            start=clock(times[0]), stop=clock(times[1]), outline=outline, objects="\n".join(objects)
        )
    )
    return safe


def places(
    ground: np.ndarray,
    forwards: np.ndarray,
    right: np.ndarray,
    offsets: np.ndarray,
    height_m: float,
    epsg: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Latitude, longitude, easting and northing of every line and sample, put down onto the land."""
    plane = ground + offsets[:, None, None] * forwards + offsets[None, :, None] * right
    to_lonlat = pyproj.Transformer.from_crs(4978, 4979, always_xy=True)
    longitude, latitude, _ = to_lonlat.transform(*np.moveaxis(plane, -1, 0))
    eastings, northings = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(
        longitude, latitude
    )
    return latitude, longitude, eastings, northings


def orbit_vector(time: datetime, seconds: float, satellite: Callable[[Any], np.ndarray]) -> str:
    """A state vector of the annotation."""
    (x, y, z), after, before = satellite(seconds).tolist(), satellite(seconds + 0.5), satellite(seconds - 0.5)
    u, v, w = (after - before).tolist()
    return (
        f"<orbit><time>{clock(time + timedelta(seconds=seconds))}</time><frame>Earth Fixed</frame>"
        f"<position><x>{x!r}</x><y>{y!r}</y><z>{z!r}</z></position>"
        f"<velocity><x>{u!r}</x><y>{v!r}</y><z>{w!r}</z></velocity></orbit>"
    )


def clock(time: datetime) -> str:
    """As annotations write it."""
    return f"{time:%Y-%m-%dT%H:%M:%S.%f}"
