"""Rules that tell splits, and how far splits are from each other, against plain loops over all pairs."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from reben_cloud.bigearthnet import grid
from reben_cloud.errors import SourceError
from reben_cloud.root.squares import lonlat_squares
from reben_cloud.scenes.separation import Separation, describe, separations
from reben_cloud.scenes.split import BlockSplit, PaperSplit, Squares, TableSplit, open_split

TILE = "S2A_MSIL2A_20240115T074231_N0510_R092_T37MBU"
BESIDE = "S2A_MSIL2A_20240115T074231_N0510_R092_T37MCU"
"""The tile east of it, which overlaps it by 9.8 km."""


def squares_of(product, places, side_m=1200):
    epsg, left, top = grid.tile_corner(product[39:44])
    x, y = (np.array(values) for values in zip(*places, strict=True))
    ids = [grid.format_patch_id(product, *place, patch_m=side_m) for place in places]
    return Squares(ids, epsg, left + side_m * x, top - side_m * y, side_m, (left, top))


def all_places(step=1):
    return [(x, y) for x in range(0, 91, step) for y in range(0, 91, step)]


def test_the_papers_rule_is_the_grids():
    places = all_places()

    found = PaperSplit().splits_of(squares_of(TILE, places))

    assert found.tolist() == [grid.split(*place) for place in places]


def test_half_of_the_blocks_are_train():
    found = BlockSplit(side_m=2400).splits_of(squares_of(TILE, all_places()))

    shares = {name: (found == name).mean() for name in ("train", "validation", "test")}
    assert shares == pytest.approx({"train": 0.5, "validation": 0.25, "test": 0.25}, abs=0.03)


@settings(max_examples=20, deadline=None)
@given(side_m=st.integers(300, 30_000), seed=st.integers(0, 9))
def test_overlapping_tiles_share_their_blocks(side_m, seed):
    rule = BlockSplit(side_m=side_m, seed=seed)
    splits = {}
    for product, columns in ((TILE, range(80, 91)), (BESIDE, range(11))):
        squares = squares_of(product, [(x, y) for x in columns for y in range(0, 91, 9)])
        for split, west, north in zip(
            rule.splits_of(squares).tolist(), squares.left.tolist(), squares.top.tolist(), strict=True
        ):
            block = (west + 600) // side_m, (north - 600) // side_m
            assert splits.setdefault(block, split) == split


def test_another_seed_and_another_zone_draw_otherwise():
    places = all_places(7)
    one = BlockSplit(side_m=5000).splits_of(squares_of(TILE, places))

    assert (one != BlockSplit(side_m=5000, seed=1).splits_of(squares_of(TILE, places))).any()
    # For good: splits of a dataset must not change with a release.
    assert one[:8].tolist() == GOLDEN


GOLDEN = ["train", "test", "train", "test", "train", "train", "test", "test"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_says_it(tmp_path, suffix):
    squares = squares_of(TILE, [(0, 0), (0, 1), (5, 5)])
    table = pa.table(
        {"patch_id": squares.patch_ids, "note": [1, 2, 3], "split": ["test", "train", "validation"]}
    )
    path = tmp_path / f"splits{suffix}"
    (pyarrow.csv.write_csv if suffix == ".csv" else pq.write_table)(table, path)

    rule = open_split(str(path))

    assert rule == TableSplit(path)
    assert rule.splits_of(squares).tolist() == ["test", "train", "validation"]
    assert [*rule.identity()] == [f"split {path.name}"]
    with pytest.raises(SourceError, match=r"says nothing of \S+_06_06 \(1 patches"):
        rule.splits_of(squares_of(TILE, [(0, 0), (6, 6)]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("patch_id,split\na,val\n", "unknown split 'val'; known are train", id="name"),
        pytest.param("patch_id,part\na,test\n", "not a table with patch_id and split", id="column"),
        pytest.param("patch_id,split\na,test\na,train\n", "a patch stands in several rows", id="twice"),
    ],
)
def test_a_table_that_says_nonsense_is_refused(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)

    with pytest.raises(SourceError, match=message):
        open_split(str(tmp_path / "s.csv"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param(("blocks",), ValueError, "needs the side of a block", id="no size"),
        pytest.param(("paper", 100), ValueError, "only it takes one", id="size"),
        pytest.param(("blocks", 0), ValueError, "at least 1 m, got 0", id="zero"),
        pytest.param(("nope.csv",), FileNotFoundError, r"nope\.csv: no such table", id="no file"),
    ],
)
def test_a_rule_that_is_none_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        open_split(arguments[0], block_m=arguments[1] if len(arguments) > 1 else None)


def by_hand(ids, splits, patch_m):
    """The smallest distance of each pair of splits, and pairs that share ground, from every pair of patches."""
    boxes = [shapely.box(*grid.footprint(one, patch_m=patch_m)[1:]) for one in ids]
    found = {}
    for (box, split), (other, of_other) in itertools.combinations(zip(boxes, splits, strict=True), 2):
        pair = tuple(sorted((split, of_other), key=("train", "validation", "test").index))
        if split != of_other:
            distance, overlaps = found.get(pair, (np.inf, 0))
            shares = shapely.intersection(box, other).area > 2 * patch_m
            found[pair] = min(distance, box.distance(other)), overlaps + shares
    return found


@settings(max_examples=25, deadline=None)
@given(data=st.data(), patch_m=st.sampled_from([600, 1200, 2400]))
def test_distances_are_those_of_all_pairs(data, patch_m):
    sides = 109_800 // patch_m
    place = st.tuples(st.sampled_from([TILE, BESIDE]), st.integers(0, sides - 1), st.integers(0, 6))
    ids = [
        grid.format_patch_id(product, x, y, patch_m=patch_m)
        for product, x, y in data.draw(st.lists(place, min_size=2, max_size=25, unique=True))
    ]
    splits = data.draw(
        st.lists(st.sampled_from(["train", "validation", "test"]), min_size=len(ids), max_size=len(ids))
    )

    found = separations(pa.table({"patch_id": ids, "split": splits}), patch_m=patch_m)

    assert {one.splits: (one.distance_m, one.num_overlaps) for one in found} == {
        pair: (pytest.approx(distance, abs=0.1), overlaps)
        for pair, (distance, overlaps) in by_hand(ids, splits, patch_m).items()
    }


def test_zones_that_meet_are_compared():
    """The same ground in two zones: 36MZD's east and 37MBU's west overlap at 36 degrees east."""
    zone_36 = "S2A_MSIL2A_20240115T074231_N0510_R092_T36MZD"
    assert [grid.tile_corner(square)[0] for square in ("37MBU", "36MZD")] == [32737, 32736]
    ids = [f"{TILE}_{x:02d}_05" for x in range(3)] + [f"{zone_36}_{x:02d}_05" for x in range(91)]
    splits = ["train"] * 3 + ["test"] * 91

    (found,) = separations(pa.table({"patch_id": ids, "split": splits}), patch_m=1200)

    assert found.splits == ("train", "test")
    assert found.num_overlaps > 0
    assert found.distance_m == 0
    assert "train and test 0 m (" in describe([found])


def test_what_is_said_of_them():
    one = Separation(splits=("train", "test"), distance_m=1200.0, num_overlaps=0)

    assert describe([]) == ""
    assert describe([one]) == "nearest patches of different splits: train and test 1,200 m"
    assert str(Separation(splits=("train", "test"), distance_m=0, num_overlaps=1)) == (
        "train and test 0 m (1 pair overlaps)"
    )


def test_a_square_across_the_antimeridian_ends_there():
    epsg, left, top = grid.tile_corner("01XDA")
    minx = left + 2400 * np.arange(4)
    rings = lonlat_squares(np.full(4, epsg), minx, np.full(4, top - 2400), minx + 2400, np.full(4, top))

    spans = np.ptp(rings[:, :, 0], axis=1)
    assert (spans < 1).all()
    assert (np.abs(rings[:, :, 0]) <= 180).all()
    assert (rings[0, :, 0] > 179).all()
    assert (rings[3, :, 0] < -179).all()
    # One that is across keeps the side of its south-west corner.
    assert (np.abs(rings[:, :, 0]) == 180).any(axis=1).sum() == 1
