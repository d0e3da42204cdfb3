"""Maps and labels from polygons, against point-in-polygon tests, the piecewise way, and a real map."""

import numpy as np
import pyogrio
import pytest
import rasterio.features
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from reben_cloud import grid
from reben_cloud.bigearthnet import labels
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import SourceError
from reben_cloud.scenes.class_table import REBEN19, ClassTable, load_class_table
from reben_cloud.scenes.land_cover import LandCover, rasterise
from reben_cloud.scenes.land_cover import read_land_cover as read
from reben_cloud.scenes.rules import label_patches
from reben_cloud.schema import Classes
from tests.scenes import make_clc

LEFT, TOP = 300_000, 5_400_000
CODES = sorted(REBEN19.labels)


def cover(polygons, codes):
    return LandCover(polygons=np.asarray(polygons, object), codes=np.asarray(codes, np.uint16))


def random_cover(seed, count, side):
    """A partition of more than the square into `count` cells of random codes, with one hole cut out."""
    rng = np.random.default_rng(seed)
    points = np.array([LEFT, TOP - side]) + rng.uniform(-0.2 * side, 1.2 * side, (count, 2))
    box = shapely.box(LEFT - side, TOP - 2 * side, LEFT + 2 * side, TOP + side)
    cells = shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(points), extend_to=box))
    hole = shapely.Point(*points[0]).buffer(0.2 * side)
    cells = [
        c for c in shapely.get_parts(shapely.difference(cells, hole)) if c.geom_type == "Polygon" and c.area
    ]
    return cover(cells, rng.choice(CODES, len(cells)))


def by_centres(land, shape):
    """The map by asking for each pixel centre in which polygon it lies: nothing of GDAL in it."""
    y, x = np.indices(shape)
    found = np.full(shape, 999, np.uint16)
    for polygon, code in zip(land.polygons, land.codes, strict=True):
        found[shapely.contains_xy(polygon, LEFT + 10 * x + 5, TOP - 10 * y - 5)] = code
    return found


@pytest.mark.slow
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 60))
def test_a_pixel_has_the_code_of_the_polygon_at_its_centre(seed, count):
    land = random_cover(seed, count, side=2400)

    found = rasterise(land, left=LEFT, top=TOP, shape=(240, 240))

    assert np.array_equal(found, by_centres(land, (240, 240)))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_one_raster_a_tile_equals_the_piecewise_way(seed):
    """Cut each polygon with each patch, add the rest as 999, rasterise, mosaic: as the pipeline does."""
    land = random_cover(seed, 30, side=2400)
    whole = rasterise(land, left=LEFT, top=TOP, shape=(240, 240))

    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        left, top = LEFT + 1200 * x, TOP - 1200 * y
        square = shapely.box(left, top - 1200, left + 1200, top)
        pieces = shapely.intersection(land.polygons, square)
        shapes = [(p, int(c)) for p, c in zip(pieces, land.codes, strict=True) if p.area > 0]
        rest = square.difference(shapely.union_all([p for p, _ in shapes]))
        shapes += [(rest, 999)] if rest.area > 0 else []
        patch = rasterio.features.rasterize(
            shapes, out_shape=(120, 120), transform=from_origin(left, top, 10, 10), dtype="uint16"
        )
        assert np.array_equal(whole[120 * y : 120 * y + 120, 120 * x : 120 * x + 120], patch)


@pytest.mark.parametrize(
    ("edge_m", "columns"),
    [
        pytest.param(30, 3, id="edge between pixels"),
        pytest.param(34.9, 3, id="just before a centre"),
        pytest.param(35.1, 4, id="just after a centre"),
        pytest.param(4.9, 0, id="less than the first centre"),
    ],
)
def test_borders_computed_by_hand(edge_m, columns):
    land = cover([shapely.box(LEFT - 50, TOP - 200, LEFT + edge_m, TOP + 50)], [211])

    found = rasterise(land, left=LEFT, top=TOP, shape=(10, 10))

    assert (found == 211).all(axis=0).tolist() == [True] * columns + [False] * (10 - columns)
    assert set(found.ravel().tolist()) <= {211, 999}


def test_later_polygon_wins_where_they_overlap():
    boxes = [shapely.box(LEFT, TOP - 100, LEFT + 60, TOP), shapely.box(LEFT + 40, TOP - 100, LEFT + 100, TOP)]

    found = rasterise(cover(boxes, [211, 312]), left=LEFT, top=TOP, shape=(10, 10))

    assert found[0].tolist() == [211] * 4 + [312] * 6


def test_no_polygons_means_nothing_is_covered():
    assert (rasterise(cover([], []), left=LEFT, top=TOP, shape=(3, 4)) == 999).all()


def test_the_real_map_comes_back_from_its_own_polygons(shared, tmp_path):
    """Real map -> polygons in EPSG:3035 -> GeoPackage -> map: the encoding of the published one."""
    patch_id = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
    (path,) = (shared / "data" / "rico_hdl_bigearthnet").rglob(f"{patch_id}_reference_map.tif")
    real = tifffile.imread(path)
    epsg, minx, miny, maxx, maxy = grid.footprint(patch_id)
    shapes = rasterio.features.shapes(real, transform=from_origin(minx, maxy, 10, 10))
    polygons, codes = zip(*((shapely.geometry.shape(s), int(c)) for s, c in shapes), strict=True)
    clc = make_clc(tmp_path / "clc.gpkg", polygons, codes)

    found = rasterise(
        read(clc, epsg=epsg, bounds=(minx, miny, maxx, maxy)), left=minx, top=maxy, shape=(120, 120)
    )

    assert found.dtype == real.dtype
    assert np.array_equal(found, real)
    here = label_patches(found, patch_px=120)
    assert here.of(0, 0) == ("Arable land", "Broad-leaved forest", "Mixed forest", "Pastures")
    assert here.kept.all()


@pytest.mark.parametrize("code", [999, 332], ids=["not covered", "code without a class"])
@pytest.mark.parametrize(("pixels", "kept"), [(3599, True), (3600, False), (0, True), (14_400, False)])
def test_a_quarter_unlabelled_is_too_much(code, pixels, kept):
    codes = np.full(14_400, 211, np.uint16)
    codes[:pixels] = code

    found = label_patches(codes.reshape(120, 120), patch_px=120)

    assert found.counts[0, 0, -1] == pixels
    assert found.kept.item() is kept


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 3), columns=st.integers(1, 3))
@settings(max_examples=20)
def test_labels_of_many_patches_equal_those_of_each(seed, rows, columns):
    rng = np.random.default_rng(seed)
    palette = rng.choice([*CODES, 999], 4)
    codes = rng.choice(palette, (rows * 120 + 7, columns * 120 + 3)).astype(np.uint16)

    found = label_patches(codes, patch_px=120)

    table = labels.class_of_code()
    for y in range(rows):
        for x in range(columns):
            one = codes[y * 120 : y * 120 + 120, x * 120 : x * 120 + 120]
            assert found.of(y, x) == labels.labels_of_map(one)
            assert found.counts[y, x, -1] == (table[one] == labels.NO_CLASS).sum()


@given(
    seed=st.integers(0, 2**32),
    rule=st.sampled_from(["any", "majority"]),
    share=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
)
@settings(max_examples=40)
def test_a_rule_means_the_same_for_a_tile_and_for_a_patch(seed, rule, share):
    """What `prepare` writes as labels, a build compares with the map of each patch."""
    table = ClassTable.of("t", {1: "b", 2: "a", 3: "c", 4: "a", 5: None}, label_rule=rule, min_share=share)
    rng = np.random.default_rng(seed)
    codes = rng.choice([1, 2, 3, 4, 5, 999], (40, 60), p=rng.dirichlet(np.ones(6))).astype(np.uint16)

    found = label_patches(codes, patch_px=20, classes=table.classes)

    for y in range(2):
        for x in range(3):
            one = codes[20 * y : 20 * y + 20, 20 * x : 20 * x + 20]
            counts = {
                name: int(np.isin(one, codes_of).sum())
                for name, codes_of in (("a", (2, 4)), ("b", 1), ("c", 3))
            }
            want = [name for name, n in counts.items() if n and n >= share * 400]
            if rule == "majority":
                want = [name for name in want if name == max(counts, key=lambda name: counts[name])]
            assert found.of(y, x) == table.classes.labels_in(one, name="x") == tuple(sorted(want))
            unlabelled = 400 - sum(counts.values())
            assert found.kept[y, x] == (unlabelled < 100 and bool(want))


def test_multipolygons_are_split_and_far_ones_left_out(tmp_path):
    near, far = (
        shapely.box(LEFT, TOP - 500, LEFT + 500, TOP),
        shapely.box(LEFT + 9e3, TOP, LEFT + 9.5e3, TOP + 500),
    )
    clc = make_clc(tmp_path / "clc.gpkg", [shapely.MultiPolygon([near, far]), far], [211, 523])

    found = read(clc, epsg=32633, bounds=(LEFT, TOP - 1200, LEFT + 1200, TOP))

    assert found.codes.tolist() == [211]
    assert shapely.equals_exact(found.polygons[0].normalize(), near.normalize(), 1e-3)


def write_features(path, boxes, codes, ids, *, layer="clc", **options):
    pyogrio.raw.write(
        path, shapely.to_wkb(boxes), [np.array(codes, object), np.array(ids)], ["code_18", "id"], layer=layer,
        driver="GPKG", crs="EPSG:32633", geometry_type="Polygon", **options,
    )  # fmt: skip
    return path


WEST, EAST = (shapely.box(LEFT + x, TOP - 1200, LEFT + x + 600, TOP) for x in (0, 600))
AROUND = {"epsg": 32633, "bounds": (LEFT, TOP - 1200, LEFT + 1200, TOP)}


def test_a_feature_that_comes_again_changes_nothing(tmp_path):
    once = write_features(tmp_path / "once.gpkg", [WEST], ["211"], ["a"])
    twice = write_features(tmp_path / "twice.gpkg", [WEST, WEST], ["211", "211"], ["a", "a"])

    maps = [rasterise(read(p, **AROUND), left=LEFT, top=TOP, shape=(120, 120)) for p in (once, twice)]

    assert np.array_equal(*maps)


@pytest.mark.parametrize(
    ("boxes", "codes", "ids"),
    [
        pytest.param([WEST, WEST], ["211", "312"], ["a", "a"], id="another code"),
        pytest.param([WEST, EAST], ["211", "211"], ["a", "a"], id="another place"),
        pytest.param([WEST, EAST], ["211", "312"], [7, 7], id="numbers, of a class"),
    ],
)
def test_different_features_of_one_id_are_refused(tmp_path, boxes, codes, ids):
    path = write_features(tmp_path / "clc.gpkg", boxes, codes, ids)

    with pytest.raises(SourceError, match=rf"clc.gpkg: different features have the id '{ids[0]}'"):
        read(path, **AROUND)


@pytest.mark.parametrize(
    "ids",
    [
        np.array([None, None], object),
        np.array(["", " "], object),
        np.array([np.nan, np.nan]),
    ],
    ids=["null", "empty", "not a number"],
)
def test_features_without_an_id_all_count(tmp_path, ids):
    path = write_features(tmp_path / "clc.gpkg", [WEST, EAST], ["211", "312"], ids)

    assert read(path, **AROUND).codes.tolist() == [211, 312]


def test_a_file_of_two_layers_of_land_cover_is_refused(tmp_path):
    path = write_features(tmp_path / "clc.gpkg", [WEST], ["211"], ["a"], layer="mainland")
    write_features(path, [EAST], ["312"], ["b"], layer="islands", append=True)

    with pytest.raises(SourceError, match=r"2 layers have a column 'code_18': mainland, islands; .*ogr2ogr"):
        read(path, **AROUND)


BOW_TIE = shapely.Polygon([(LEFT, TOP), (LEFT + 900, TOP - 900), (LEFT + 900, TOP), (LEFT, TOP - 900)])
BOX = [shapely.box(LEFT, TOP - 1200, LEFT + 1200, TOP)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"column": "kind"}, r"no layer has a column 'code_18' .*it has kind, ID, Area_Ha", id="column"),
        pytest.param({"codes": [7]}, "code '7' is none of class table reben19; is this the column", id="code"),
        pytest.param({"crs": None}, "has no CRS; CORINE 2018 is in EPSG:3035", id="crs"),
        pytest.param(
            {"polygons": [BOW_TIE]},
            "1 geometries are invalid, the first: Self-intersection", id="bow tie",
        ),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:'crs' was not provided:UserWarning")
def test_a_bad_layer_is_refused_by_name(tmp_path, options, message):
    options = {"polygons": BOX, "codes": [211]} | options
    clc = make_clc(tmp_path / "clc.gpkg", options.pop("polygons"), options.pop("codes"), **options)

    with pytest.raises(SourceError, match=message):
        read(clc, epsg=32633, bounds=(LEFT, TOP - 1200, LEFT + 1200, TOP))


def test_what_is_no_vector_file_is_refused(tmp_path):
    (tmp_path / "clc.gpkg").write_bytes(b"PK\x03\x04 not a GeoPackage")

    with pytest.raises(SourceError, match="no readable vector file"):
        read(tmp_path / "clc.gpkg", epsg=32633, bounds=(0, 0, 1, 1))
    with pytest.raises(FileNotFoundError, match="no such land-cover file"):
        read(tmp_path / "none.gpkg", epsg=32633, bounds=(0, 0, 1, 1))


def test_shipped_tables_are_corine():
    assert load_class_table("reben19") == REBEN19
    assert REBEN19.classes == REBEN.classes
    level1, each = load_class_table("clc_level1"), load_class_table("clc44")
    assert level1.labels.keys() == each.labels.keys() == REBEN19.labels.keys()
    assert len(level1.classes) == 5
    assert each.labels == {code: entry.name for code, entry in labels.CLC.items() if code != 999}
    assert dict(zip(each.classes.names, each.classes.colors, strict=True)) == {
        entry.name: entry.color for code, entry in labels.CLC.items() if code != 999
    }


def test_shipped_tables_of_10_m_maps_have_their_classes():
    world, lcfm = load_class_table("worldcover2021"), load_class_table("lcfm")

    assert sorted(world.labels) == [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
    assert sorted(lcfm.labels) == [*range(10, 120, 10), 254]
    assert {*world.classes.names} == {*lcfm.classes.names}
    # The same classes have other codes: one table read with the other's codes is wrong nearly everywhere.
    assert (world.labels[50], lcfm.labels[50], lcfm.labels[254]) == ("Built-up", "Herbaceous wetland", None)
    assert (world.nodata, lcfm.nodata) == ((0,), (255,))


def test_another_table_gives_other_labels(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('unlabelled = [3]\n[classes]\n"land" = [1]\n"sea" = [2]\n')

    table = load_class_table(path)
    found = label_patches(np.array([[1, 1, 2, 3]], np.uint16).repeat(4, 0), patch_px=2, classes=table.classes)

    assert found.of(0, 0) == ("land",)
    assert found.of(0, 1) == ("sea",)
    assert found.kept[0].tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param('[classes]\n"a" = [1]\n"b" = [1]', "code 1 stands in two places", id="twice"),
        pytest.param('[classes]\n"a" = [999]', r"codes lie in \[1, 65535\], got 999", id="999"),
        pytest.param("nodata = [7]\n[classes]\na = [7]", "code 7 stands in two places", id="nodata"),
        pytest.param(
            'labels = "most"\n[classes]\na = [1]', "label_rule must be one of any, majority", id="rule"
        ),
        pytest.param(
            "min_share = 2\n[classes]\na = [1]", r"min_share must be in \[0, 1\], got 2", id="share"
        ),
        pytest.param(
            "no_data = [1]\n[classes]\na = [1]", "has no key 'no_data'; it has title", id="unknown key"
        ),
        pytest.param(
            "[classes]\na = {code = [1]}", "class 'a' has a key 'code'; it has codes and", id="class key"
        ),
        pytest.param(
            '[classes]\na = {codes = [1], color = "#000000"}\nb = [2]',
            "class 'b' has no color",
            id="one color",
        ),
        pytest.param('[classes]\na = {codes = [1], color = "red"}', "a colour is written #rrggbb", id="red"),
        pytest.param("classes = 3", "no class table", id="no table"),
        pytest.param("[classes", "no class table", id="no TOML"),
        pytest.param("unlabelled = [1]\n[classes]", "gives no code a class", id="empty"),
    ],
)
def test_a_bad_table_is_refused(tmp_path, text, message):
    (tmp_path / "t.toml").write_text(text)

    with pytest.raises(SourceError, match=message):
        load_class_table(tmp_path / "t.toml")


def test_an_unknown_table_lists_the_shipped_ones():
    with pytest.raises(SourceError, match="neither a file nor one of reben19, clc44, clc_level1"):
        load_class_table("nope")


def test_class_table_needs_valid_codes():
    with pytest.raises(SourceError, match="codes lie in"):
        ClassTable.of("t", {0: "a"})
    with pytest.raises(SourceError, match="codes lie in"):
        ClassTable(name="t", classes=Classes(names=("a",), codes=((0,),)))
