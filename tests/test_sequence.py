"""A selection as a sequence of patches: indexes, slices, arrays, masks, iteration; errors as for lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.root.positions import position_of, positions_of
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store

NUM_PATCHES = 12


@pytest.fixture(scope="module")
def selection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequence")
    source, official = open_source(f"synthetic:{NUM_PATCHES}")
    build(make_plan(source, official, open_store(folder)))
    return rc.open(folder).search(sortby="-datetime")


def whole_numbers(low, high):
    return st.none() | st.integers(low, high)


@given(
    length=st.integers(0, 20),
    at=st.builds(
        slice,
        whole_numbers(-25, 25),
        whole_numbers(-25, 25),
        whole_numbers(-5, 5).filter(lambda step: step != 0),
    ),
)
def test_a_slice_means_what_it_means_for_a_list(length, at):
    assert positions_of(at, length, what="patch").tolist() == list(range(length))[at]


@given(length=st.integers(0, 20), at=st.integers(-25, 25))
def test_a_number_means_what_it_means_for_a_list(length, at):
    try:
        expected = list(range(length))[at]
    except IndexError:
        with pytest.raises(IndexError, match=f"patch {at} is out of range: there are {length}"):
            position_of(at, length, what="patch")
        with pytest.raises(IndexError, match=f"patch {at} is out of range"):
            positions_of([at], length, what="patch")
    else:
        assert position_of(at, length, what="patch") == expected
        assert positions_of([at], length, what="patch").tolist() == [expected]


def test_a_number_opens_the_patch(selection):
    for at in (0, 5, -1, np.int64(3)):
        patch = selection[at]

        assert patch.load().identical(selection.dataset.open_patch(selection.patch_ids[at]).load())
        assert str(patch.patch_id.values) == selection.patch_ids[at]
        assert patch.s2_10m.shape == (4, 120, 120)


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(slice(2, 7), id="slice"),
        pytest.param(slice(None, None, -2), id="backward"),
        pytest.param([3, 0, -1], id="list"),
        pytest.param(np.array([3, 0, 11], np.uint8), id="array"),
        pytest.param(np.arange(NUM_PATCHES) % 3 == 0, id="mask"),
        pytest.param([True, False] * (NUM_PATCHES // 2), id="list-of-booleans"),
        pytest.param([], id="nothing"),
    ],
)
def test_several_are_a_selection_in_that_order(selection, at):
    found = selection[at]

    expected = np.array(selection.patch_ids)[
        at if isinstance(at, slice) else np.asarray(at, None if len(at) else int)
    ]
    assert isinstance(found, type(selection))
    assert found.patch_ids == expected.tolist()
    assert found.column("datetime").to_pylist() == [
        selection.column("datetime").to_pylist()[selection.patch_ids.index(i)] for i in found.patch_ids
    ]


def test_a_selection_is_iterated_patch_by_patch(selection):
    assert [str(patch.patch_id.values) for patch in selection[:4]] == selection.patch_ids[:4]
    assert [str(patch.patch_id.values) for patch in reversed(selection[:3])] == selection.patch_ids[2::-1]


def test_a_selection_says_whether_it_has_a_patch(selection):
    assert selection.patch_ids[0] in selection
    assert selection.patch_ids[0] not in selection[1:]
    assert 0 not in selection


def test_weights_go_with_their_patches(selection):
    weights = np.arange(NUM_PATCHES) / 4

    found = selection.weighted(weights)[[3, 0, 8]]

    assert found.repeats.weights.tolist() == [0.75, 0.0, 2.0]
    assert selection[[3, 0, 8]].repeats is None
    assert len(selection.weighted(weights)[:0]) == 0


@pytest.mark.parametrize(
    ("at", "error", "message"),
    [
        pytest.param(12, IndexError, "patch 12 is out of range: there are 12", id="after-the-last"),
        pytest.param([0, -13], IndexError, "patch -13 is out of range", id="before-the-first"),
        pytest.param([True], IndexError, "a mask needs as many booleans as there are, 12, got 1", id="mask"),
        pytest.param("0", TypeError, "not str", id="string"),
        pytest.param((0, 1), TypeError, "not tuple", id="two-axes"),
        pytest.param(1.0, TypeError, "not float", id="float"),
        pytest.param([0.5], TypeError, "got float64", id="floats"),
        pytest.param(np.zeros((2, 2), int), TypeError, "along one axis", id="matrix"),
        pytest.param([1, 2, -11], ValueError, "patch 1 is asked for several times", id="twice"),
    ],
)
def test_what_is_no_index_is_an_error(selection, at, error, message):
    with pytest.raises(error, match=message):
        selection[at]
