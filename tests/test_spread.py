"""A seeded choice against its rule written the slow way, against brute force, and on all official rows."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyproj
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reben_cloud as rc
from reben_cloud import grid
from reben_cloud.build import build, make_plan
from reben_cloud.errors import NotFoundError
from reben_cloud.search import SEASONS
from reben_cloud.sources.recognise import open_source
from reben_cloud.spread import MARGIN_M, draw, earth_points, nearest_m, seeded_keys
from reben_cloud.store import open_store
from tests.conftest import PATIENT_S
from tests.roots import synthetic_root

GEOD = pyproj.Geod(ellps="WGS84")


def distance_m(a, b):
    """Metres over the ground between (longitude, latitude) and another."""
    return GEOD.inv(*a, *b)[2]


def by_rule(keys, num, members, places, min_distance_m):
    """The rule of `draw` as its documentation has it, every candidate looked at in every step."""
    left, chosen = set(range(len(keys))), []
    groups = range(members.shape[1])
    counts = dict.fromkeys(groups, 0)
    while len(chosen) < num:
        left = {
            one
            for one in left
            if all(distance_m(places[one], places[other]) >= min_distance_m for other in chosen)
        }
        alive = [g for g in groups if any(members[one, g] for one in left)]
        if not alive:
            break
        poorest = min(alive, key=lambda g: (counts[g], g))
        mean = Fraction(sum(counts[g] for g in alive), len(alive))
        rich = [g for g in alive if counts[g] > mean]
        best = min(
            (one for one in left if members[one, poorest]),
            key=lambda one: (sum(bool(members[one, g]) for g in rich), keys[one]),
        )
        chosen.append(best)
        left.remove(best)
        for g in groups:
            counts[g] += int(members[best, g])
    return chosen


candidates = st.integers(0, 14)


@given(
    members=hnp.arrays(bool, st.tuples(candidates, st.integers(1, 4)), elements=st.booleans()),
    num=st.integers(1, 16),
    apart=st.booleans(),
    seed=st.integers(0, 5),
)
@example(members=np.ones((0, 3), bool), num=3, apart=True, seed=0)
@example(members=np.zeros((5, 2), bool), num=3, apart=False, seed=0)
def test_the_choice_is_what_the_rule_says(members, num, apart, seed):
    keys = seeded_keys(map(str, range(len(members))), seed)
    # A kilometre between neighbours on a line; two of them are to stay free.
    places = [(13 + 0.0131 * n, 48.0) for n in range(len(members))]
    least = 2500.0 if apart else 0.0
    points = earth_points(*np.array(places).reshape(-1, 2).T) if apart else None

    found = draw(keys, num, members=members, points=points, min_distance_m=least)

    assert found.tolist() == by_rule(keys.tolist(), num, members, places, least)
    more = draw(keys, num + 3, members=members, points=points, min_distance_m=least)
    assert more[: len(found)].tolist() == found.tolist()


def shares(sizes, num):
    """Equal shares by filling all groups to one level, and the groups that may have one more."""
    level = 0
    while sum(min(size, level + 1) for size in sizes.values()) <= num:
        level += 1
        if level > max(sizes.values()):
            break
    return {group: min(size, level) for group, size in sizes.items()}


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), num=st.integers(1, 30))
def test_separate_groups_get_equal_shares_and_what_others_lack(sizes, num):
    group = np.repeat(np.arange(len(sizes)), sizes)
    members = group[:, None] == np.arange(len(sizes))

    found = draw(
        seeded_keys(map(str, group), 3) + np.arange(len(group), dtype=np.uint64), num, members=members
    )

    counts = Counter(group[found].tolist())
    least = shares(dict(enumerate(sizes)), num)
    assert len(found) == min(num, sum(sizes))
    for number, size in enumerate(sizes):
        assert counts[number] in {least[number], min(size, least[number] + 1)}


places = st.tuples(st.floats(-180, 180), st.floats(-90, 90))
near = st.tuples(st.floats(179.99, 180.01), st.floats(69.99, 70.01))


@given(
    where=st.lists(st.one_of(near, places), max_size=40), least=st.floats(0.01, 5000), seed=st.integers(0, 9)
)
def test_distances_are_kept_anywhere_on_the_globe(where, least, seed):
    points = earth_points(*np.array(where, float).reshape(-1, 2).T)

    found = draw(
        seeded_keys(map(str, range(len(where))), seed), len(where), points=points, min_distance_m=least
    )

    chosen = [where[number] for number in found.tolist()]
    for number, one in enumerate(chosen):
        assert all(distance_m(one, other) >= least for other in chosen[:number])
    # And nothing is left out that is far from all that was taken.
    for number in set(range(len(where))) - set(found.tolist()):
        assert any(distance_m(where[number], other) < least + 2 * MARGIN_M for other in chosen)


def test_keys_are_those_of_every_release():
    assert seeded_keys(["a", "b", "S2A"], 7).tolist() == KEYS
    assert seeded_keys(["a"], 2**80).tolist() != seeded_keys(["a"], 2**80 + 1).tolist()
    assert seeded_keys([], 0).tolist() == []


KEYS = [9853597113845583197, 15555327831108728156, 9361187535794662018]


# -- searches ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    synthetic_root(folder, 300, num_products=10)
    return rc.open(folder)


@given(
    num=st.integers(1, 30),
    seed=st.integers(0, 99),
    balance=st.sampled_from([None, "label", "country", "season"]),
    least=st.sampled_from([None, 1000, 2500.5]),
    split=st.sampled_from([None, "train"]),
)
@settings(max_examples=40)
def test_a_sample_is_of_what_is_found_and_in_its_order(dataset, num, seed, balance, least, split):
    how = {"sample_seed": seed, "balance": balance, "min_distance_m": least, "split": split}

    found = dataset.search(sample=num, **how)

    every = dataset.search(split=split).patch_ids
    assert len(found) == num
    assert found.patch_ids == [one for one in every if one in set(found.patch_ids)]
    assert set(dataset.search(sample=max(1, num // 2), **how).patch_ids) <= set(found.patch_ids)
    turned = dataset.search(sample=num, **how, sortby="-id").patch_ids
    assert turned == sorted(found.patch_ids, reverse=True)


def test_a_sample_does_not_depend_on_the_order_of_the_ids(dataset):
    ids = dataset.selection.patch_ids[::-3]

    kept = dataset.search(ids=ids, ids_order=True, sample=20, balance="label").patch_ids

    assert kept == [one for one in ids if one in set(kept)]
    assert set(kept) == set(dataset.search(ids=ids[::-1], sample=20, balance="label").patch_ids)


@pytest.mark.slow
def test_a_sample_of_what_was_sampled_before_is_the_same_in_a_part(dataset, tmp_path):
    """A number depends on seed and id alone: a root of a part draws what a search for that part draws."""
    part = dataset.search(split="train")
    source, official = open_source(dataset.url)
    build(make_plan(source, official, open_store(tmp_path), only=part.patch_ids))

    drawn = dataset.search(split="train", sample=15).patch_ids
    assert set(rc.open(tmp_path).search(sample=15).patch_ids) == set(drawn)


@pytest.mark.slow
def test_a_fresh_process_draws_the_same(dataset):
    code = (
        "import sys, reben_cloud as rc\n"
        "print(*rc.open(sys.argv[1]).search(sample=9, sample_seed=4, balance='label', min_distance_m=2e3).patch_ids)"
    )
    command = [sys.executable, "-c", code, dataset.url]

    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert found == dataset.search(sample=9, sample_seed=4, balance="label", min_distance_m=2000).patch_ids


def test_too_few_patches_are_an_error_that_says_how_many_can_be_had(dataset):
    with pytest.raises(NotFoundError, match=r"sample of 301 .*: 300 patches fit .*; sample at most 300$"):
        dataset.search(sample=301)
    with pytest.raises(NotFoundError, match=r": 0 patches fit the other conditions; ask for less$"):
        dataset.search(ids=[], sample=1, balance="label", min_distance_m=None)
    with pytest.raises(NotFoundError) as error:
        dataset.search(sample=300, min_distance_m=30_000, balance="season")
    number = int(str(error.value).rpartition("sample at most ")[2].partition(",")[0])
    assert f"{number} are at least 30,000 m apart" in str(error.value)
    assert len(dataset.search(sample=number, min_distance_m=30_000, balance="season")) == number


# -- all official rows ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(official_catalog):
    """All 549,488 real rows as a dataset without pixels."""
    return rc.open(official_catalog)


def timed(search, **query):
    """A search with a loose bound: a step per pair of patches would take hours."""
    start = time.monotonic()
    found = search(**query)
    assert time.monotonic() - start < PATIENT_S
    return found


@pytest.mark.slow
def test_golden_samples_of_all_patches(everything):
    assert everything.search(sample=3).patch_ids == GOLDEN["plain"]
    assert everything.search(sample=3, sample_seed=1).patch_ids == GOLDEN["seed"]
    assert everything.search(sample=4, balance="label").patch_ids == GOLDEN["label"]
    assert everything.search(sample=3, balance="country", min_distance_m=5000).patch_ids == GOLDEN["country"]


GOLDEN = {
    "plain": [
        "S2A_MSIL2A_20180225T114351_N9999_R123_T29UPU_50_84",
        "S2B_MSIL2A_20170914T093029_N9999_R136_T34TEP_24_73",
        "S2A_MSIL2A_20180228T101021_N9999_R022_T34WFS_65_11",
    ],
    "seed": [
        "S2B_MSIL2A_20180515T112109_N9999_R037_T29SND_59_68",
        "S2B_MSIL2A_20171219T095409_N9999_R079_T33TWN_27_73",
        "S2B_MSIL2A_20180204T094159_N9999_R036_T35VPK_53_88",
    ],
    "label": [
        "S2B_MSIL2A_20180224T112109_N9999_R037_T29SNC_03_34",
        "S2A_MSIL2A_20180225T114351_N9999_R123_T29UPU_50_84",
        "S2B_MSIL2A_20170914T093029_N9999_R136_T34TEP_24_73",
        "S2A_MSIL2A_20180205T100211_N9999_R122_T35VLJ_52_76",
    ],
    "country": [
        "S2A_MSIL2A_20180225T114351_N9999_R123_T29UPU_50_84",
        "S2A_MSIL2A_20170818T103021_N9999_R108_T32TMT_25_43",
        "S2A_MSIL2A_20180318T093031_N9999_R136_T35UMB_11_35",
    ],
}


@pytest.mark.slow
def test_classes_of_all_patches_are_as_even_as_their_patches_allow(everything):
    found = timed(everything.search, sample=5000, balance="label", recommended=True)

    counts = found.statistics["labels"]
    assert len(counts) == 19
    # The poorest class of a random sample of 5,000 has about a dozen patches.
    assert min(counts.values()) > 750
    # Patches with beaches or coastal wetlands are few, and nearly all of them have marine waters too.
    assert counts.pop("Marine waters") < 900
    assert max(counts.values()) - min(counts.values()) <= 20
    few = timed(everything.search, sample=200, balance="label", recommended=True).statistics["labels"]
    assert max(few.values()) - min(few.values()) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["country", "season"])
def test_countries_and_seasons_of_all_patches_have_equal_shares(everything, balance):
    found = timed(everything.search, sample=30_000, balance=balance)

    every = groups_of(everything.search(), balance)
    counts, least = groups_of(found, balance), shares(every, 30_000)
    assert counts.keys() == every.keys()
    assert all(0 <= counts[one] - least[one] <= 1 for one in every)
    assert sum(counts.values()) == 30_000


def groups_of(selection, balance):
    """How many patches each country or season has."""
    frame = selection.to_pandas()
    if balance == "country":
        return Counter(frame.country)
    month = {number: season for season, months in SEASONS.items() for number in months}
    return Counter(frame.datetime.dt.month.map(month))


@pytest.mark.slow
@pytest.mark.parametrize("balance", [None, "label"])
def test_distances_between_all_patches_are_kept(everything, balance):
    found = timed(everything.search, sample=1500, min_distance_m=4000, balance=balance)

    centres = []
    for name in found.patch_ids:
        epsg, minx, miny, maxx, maxy = grid.footprint(name)
        to_degrees = TO_DEGREES.setdefault(epsg, pyproj.Transformer.from_crs(epsg, 4326, always_xy=True))
        centres.append(to_degrees.transform((minx + maxx) / 2, (miny + maxy) / 2))
    lon, lat = np.array(centres).T
    first, second = np.triu_indices(len(lon), k=1)
    apart = GEOD.inv(lon[first], lat[first], lon[second], lat[second])[2]
    assert apart.min() >= 4000


TO_DEGREES: dict[int, pyproj.Transformer] = {}


@pytest.mark.slow
def test_a_sample_comes_from_more_than_the_first_product(everything):
    head, spread = everything.search(limit=6), everything.search(sample=6)

    assert len({name[:-6] for name in head.patch_ids}) == 1
    assert len({name[:-6] for name in spread.patch_ids}) == 6


@pytest.mark.slow
def test_all_that_can_be_had_takes_seconds(everything):
    with pytest.raises(NotFoundError, match=r"sample at most ([\d,]+), or give a smaller min_distance_m"):
        timed(everything.search, sample=549_488, min_distance_m=2000, balance="label")


def test_nothing_here_depends_on_how_a_library_shuffles():
    code = (Path(rc.__file__).parent / "spread.py").read_text()

    assert "random" not in code.replace("at random", "").replace("random number", "")


@given(
    seed=st.integers(0, 99),
    num=st.integers(1, 300),
    others=st.integers(1, 900),
    places=st.integers(1, 6),
    spread=st.sampled_from([0.0, 0.001, 0.1, 5.0]),
)
@settings(max_examples=40)
@example(seed=0, num=300, others=900, places=1, spread=0.001)
def test_the_nearest_is_the_nearest_of_all(seed, num, others, places, spread):
    random = np.random.Generator(np.random.Philox(seed))
    centres = random.uniform([-180, -90], [180, 90], (places, 2))

    def points(count):
        chosen = centres[random.integers(0, places, count)] + random.normal(0, spread, (count, 2))
        return earth_points(chosen[:, 0], np.clip(chosen[:, 1], -90, 90))

    one, other = points(num), points(others)
    apart = (one[:, None].astype(float) - other) / 100

    np.testing.assert_allclose(nearest_m(one, other), np.sqrt((apart**2).sum(2)).min(1), atol=1e-6)


def test_the_nearest_of_many_is_found_cell_by_cell():
    """More pairs than are compared at once: cells are cut, and far ones left out."""
    random = np.random.Generator(np.random.Philox(1))
    place = random.uniform([5, 45], [15, 55], (9000, 2))
    one = earth_points(place[:3000, 0], place[:3000, 1])
    other = earth_points(place[3000:, 0] + 3, place[3000:, 1])
    few = slice(0, 3000, 60)

    found = nearest_m(one, other)

    apart = (one[few, None].astype(float) - other) / 100
    np.testing.assert_allclose(found[few], np.sqrt((apart**2).sum(2)).min(1), atol=1e-6)
    assert nearest_m(one, one).max() == 0
    with pytest.raises(ValueError, match="nothing is nearest"):
        nearest_m(one, one[:0])
