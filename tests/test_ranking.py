"""Ranks over arrays: the nearest rows against a plain sort in float64, suspects against the mistakes that were made."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reben_cloud.ranking.nearest import nearest
from reben_cloud.ranking.suspects import suspects

DTYPES = (np.float16, np.float32, np.int8)
METRICS = ("cosine", "dot", "l2")


def by_sorting(vectors, query, metric):
    """Scores of all rows in float64, and a key that is smaller for what is nearer."""
    x, q = vectors.astype(np.float64), np.asarray(query, np.float32).astype(np.float64)
    if metric == "l2":
        scores = np.linalg.norm(x - q, axis=1)
        return scores, scores
    scores = x @ q
    if metric == "cosine":
        scores = scores / np.linalg.norm(x, axis=1) / np.linalg.norm(q)
    return scores, -scores


def embeddings(seed, num, num_dims, dtype, *, distinct):
    """Rows with many ties: drawn from a few distinct ones, in any order."""
    rng = np.random.default_rng(seed)
    pool = rng.normal(0, 20 if dtype == np.int8 else 0.05, (distinct, num_dims))
    pool = pool.astype(dtype)
    pool[(pool == 0).all(axis=1), 0] = 1
    return pool[rng.integers(0, distinct, num)]


@given(
    seed=st.integers(0, 2**32 - 1),
    num=st.integers(1, 2000),
    num_dims=st.sampled_from([1, 2, 7, 768]),
    dtype=st.sampled_from(DTYPES),
    metric=st.sampled_from(METRICS),
    k=st.integers(1, 40),
    num_queries=st.integers(1, 3),
    distinct=st.sampled_from([1, 3, 5000]),
    cut=st.booleans(),
)
@example(3, 2000, 768, np.float16, "cosine", 40, 2, 5000, False)
@example(4, 2000, 768, np.int8, "l2", 2000, 1, 3, True)
@settings(max_examples=60, deadline=None)
def test_nearest_is_a_sort_of_all_rows(seed, num, num_dims, dtype, metric, k, num_queries, distinct, cut):
    vectors = embeddings(seed, num, num_dims, dtype, distinct=distinct)
    rng = np.random.default_rng(seed + 1)
    queries = vectors[rng.integers(0, num, num_queries)].astype(np.float32)
    given_as = iter(np.array_split(vectors, 3)) if cut else vectors

    rows, scores = nearest(given_as, queries, k, metric=metric)

    assert rows.shape == scores.shape == (num_queries, min(k, num))
    assert rows.dtype == np.int64
    assert scores.dtype == np.float32
    for query, found, score in zip(queries, rows, scores, strict=True):
        expected, keys = by_sorting(vectors, query, metric)
        # The sums of the two are not in one order: rows nearer to each other than that may change places.
        np.testing.assert_allclose(
            keys[found], np.sort(keys)[: len(found)], rtol=1e-9, atol=1e-7 * (metric == "l2") + 1e-12
        )
        np.testing.assert_allclose(score, expected[found], rtol=1e-6, atol=1e-6)
        assert len(set(found.tolist())) == len(found)
        equal = (vectors[found[1:]] == vectors[found[:-1]]).all(axis=1)
        assert (np.diff(found)[equal] > 0).all()


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_whole_numbers_are_ranked_as_a_stable_sort_ranks_them(metric):
    """Every sum is exact, and many rows that differ have one score."""
    vectors = np.random.default_rng(0).integers(-3, 4, (30_000, 16)).astype(np.float16)
    query = vectors[17].astype(np.float32)

    rows, _ = nearest(vectors, query, 500, metric=metric)

    _, keys = by_sorting(vectors, query, metric)
    np.testing.assert_array_equal(rows[0], np.argsort(keys, kind="stable")[:500])


def test_scores_closer_than_float32_can_tell_are_ordered():
    """Rows whose dot products differ by less than float32 resolves beside their lengths."""
    rng = np.random.default_rng(0)
    num, num_dims = 3000, 64
    vectors = np.full((num, num_dims), 1000, np.float32)
    vectors[:, 1::2] = -1000
    vectors[:, 0] += rng.permutation(num) * np.float32(
        2**-13
    )  # below the error of a sum of 64 thousands in float32

    rows, _ = nearest(vectors, np.ones(num_dims, np.float32), 50, metric="dot")

    np.testing.assert_array_equal(rows[0], np.argsort(-vectors[:, 0].astype(np.float64), kind="stable")[:50])


@pytest.mark.parametrize("metric", METRICS)
def test_only_candidates_are_looked_at(metric):
    vectors = embeddings(1, 5000, 96, np.float16, distinct=5000)
    vectors[7] = np.nan
    rng = np.random.default_rng(2)
    candidates = np.setdiff1d(rng.choice(5000, 700, replace=False), [7])
    blocks = np.split(vectors, [0, 1000, 1001, 4000])

    shuffled = rng.permutation(np.concatenate([candidates, candidates[:5]]))
    whole = nearest(vectors, vectors[3], 20, metric=metric, candidates=shuffled)
    streamed = nearest(iter(blocks), vectors[3], 20, metric=metric, candidates=shuffled)
    rows, scores = nearest(vectors[candidates], vectors[3], 20, metric=metric)

    for found in (whole, streamed):
        np.testing.assert_array_equal(found[0], candidates[rows])
        np.testing.assert_array_equal(found[1], scores)


def test_the_answer_does_not_depend_on_cores_or_blocks(monkeypatch):
    vectors = embeddings(5, 4000, 768, np.float16, distinct=50)
    expected = nearest(vectors, vectors[:2], 1000)

    for cores in (1, 7):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        for given_as in (vectors, np.array_split(vectors, 9), np.asfortranarray(vectors)):
            found = nearest(given_as, vectors[:2], 1000)

            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


def test_every_half_is_widened_to_itself():
    """One row for each finite half there is, zeros and subnormals too; the score of a row is its number."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)][:, None]

    rows, scores = nearest(halves, [1.0], len(halves), metric="dot")

    np.testing.assert_array_equal(rows[0], np.argsort(-halves[:, 0].astype(np.float64), kind="stable"))
    np.testing.assert_array_equal(scores[0], halves[rows[0], 0].astype(np.float32))


@pytest.mark.slow
def test_halves_are_right_where_subnormals_are_flushed():
    """Torch can have the processor take subnormal floats for zero, which must change no answer."""
    pytest.importorskip("torch")
    code = (
        "import numpy as np, torch; from reben_cloud.ranking.nearest import nearest; torch.set_flush_denormal(True); "
        "tiny = np.arange(1, 900, dtype=np.uint16)[:, None].view(np.float16); "
        "print(nearest(tiny, [1.0], 3, metric='cosine')[0].tolist(), nearest(tiny, [1.0], 3, metric='dot')[0].tolist())"
    )

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "[[0, 1, 2]] [[898, 897, 896]]"


def test_fewer_rows_than_asked_for():
    vectors = np.eye(3, dtype=np.float32)

    assert nearest(vectors, vectors[1], 10)[0].tolist() == [[1, 0, 2]]
    assert nearest(vectors, vectors[1], 10, candidates=[])[0].shape == (1, 0)
    assert nearest(np.zeros((0, 3), np.float16), vectors[1], 10)[0].shape == (1, 0)
    assert nearest([], vectors, 10)[1].shape == (3, 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(np.nan, "has a number that is infinite or NaN", id="nan"),
        pytest.param(-np.inf, "has a number that is infinite or NaN", id="infinite"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("metric", METRICS)
def test_the_first_row_that_is_not_finite_is_named(value, message, dtype, metric):
    vectors = np.ones((5000, 200), dtype)
    vectors[4001, 5] = value
    vectors[4990] = np.nan

    with pytest.raises(ValueError, match=f"^row 4001 of vectors {message}"):
        nearest(np.array_split(vectors, 3), np.ones(200), 3, metric=metric)
    with pytest.raises(ValueError, match=r"^query 0 has a number that is infinite or NaN"):
        nearest(vectors[:10], vectors[4001], 3, metric=metric)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_zeros_has_no_direction_but_a_distance(dtype):
    vectors = np.ones((5, 4), dtype)
    vectors[2] = 0

    with pytest.raises(
        ValueError, match=r"^row 2 of vectors is shorter than 2\*\*-50.*metric='dot'.*`candidates`"
    ):
        nearest(vectors, np.ones(4), 1)
    with pytest.raises(ValueError, match=r"^query 0 is shorter"):
        nearest(vectors, vectors[2], 1)
    assert nearest(vectors, np.ones(4), 1, candidates=[1, 3])[0].tolist() == [[1]]
    assert nearest(vectors, vectors[2], 1, metric="l2")[0].tolist() == [[2]]
    assert nearest(-vectors, np.ones(4), 1, metric="dot")[0].tolist() == [[2]]


def test_vectors_of_any_length_up_to_the_bound():
    vectors = np.array([[2.0**59, 0], [2.0**-49, 2.0**-49], [2.0**58, 2.0**58], [-(2.0**58), 1]], np.float32)

    assert nearest(vectors, vectors[1], 4)[0].tolist() == [[1, 2, 0, 3]]
    assert nearest(vectors, vectors[1], 4, metric="dot")[0].tolist() == [[0, 2, 1, 3]]
    assert nearest(vectors, vectors[0], 4, metric="l2")[0].tolist() == [[0, 2, 1, 3]]
    vectors[3] = 2.0**90
    for metric in METRICS:
        with pytest.raises(ValueError, match=r"^row 3 of vectors is longer than 2\*\*60"):
            nearest(vectors, vectors[1], 1, metric=metric)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"k": 0}, ValueError, "k must be at least 1, got 0", id="k"),
        pytest.param({"metric": "cos"}, ValueError, "cosine, dot, l2, got 'cos'", id="metric"),
        pytest.param({"query": np.ones(5)}, ValueError, r"\(n, 5\).*got \(6, 4\)", id="dimensions"),
        pytest.param({"query": 1.0}, ValueError, r"\(d,\) or \(q, d\), got \(\)", id="query"),
        pytest.param({"vectors": np.ones((6, 4))}, TypeError, "got float64; convert", id="dtype"),
        pytest.param({"vectors": np.ones((6, 4), ">f2")}, TypeError, "got >f2", id="byte order"),
        pytest.param({"vectors": [np.ones(4, np.float32)]}, ValueError, r"got \(4,\)", id="block"),
        pytest.param(
            {"candidates": [1, 6]}, ValueError, "there is no row 6; vectors has 6 rows", id="beyond"
        ),
        pytest.param({"candidates": [-1]}, ValueError, "there is no row -1", id="below"),
        pytest.param({"candidates": [True] * 6}, ValueError, "whole numbers of shape", id="mask"),
    ],
)
def test_wrong_arguments_of_nearest(arguments, error, message):
    given_as = {"vectors": np.ones((6, 4), np.float16), "query": np.ones(4), "k": 2} | arguments

    with pytest.raises(error, match=message):
        nearest(given_as.pop("vectors"), given_as.pop("query"), given_as.pop("k"), **given_as)


def noisy_labels(seed=0, num=3000, num_classes=6):
    """Labels of which some were turned, which ones, and probabilities that know the truth fairly well."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(np.linspace(-3, 1, num_classes), 2, (num, num_classes))
    true = rng.random((num, num_classes)) < 1 / (1 + np.exp(-2 * logits))
    turned = rng.random((num, num_classes)) < np.where(true, 0.1, 0.01)
    return true ^ turned, turned, 1 / (1 + np.exp(-2 * logits))


def average_precision(found):
    """Mean of the precision at each that is found; `found` in ranked order."""
    hits = np.flatnonzero(found)
    return (np.arange(1, len(hits) + 1) / (hits + 1)).mean()


def test_turned_labels_are_found_better_than_by_the_probability_of_the_label():
    gains = []
    for seed in range(5):
        labels, turned, probabilities = noisy_labels(seed)

        found = suspects(labels, probabilities)
        patches = suspects(labels, probabilities, by="patch")

        doubt = np.where(labels, probabilities, 1 - probabilities)
        by_probability = turned.ravel()[np.argsort(doubt.ravel(), kind="stable")]
        by_least = turned.any(axis=1)[np.argsort(doubt.min(axis=1), kind="stable")]
        ours = average_precision(turned[found.rows, found.classes])
        assert ours > 10 * turned.mean()
        gains.append(
            (
                ours / average_precision(by_probability),
                average_precision(turned.any(axis=1)[patches.rows]) / average_precision(by_least),
            )
        )
    # With few rows it may not show that more labels are lost than added; then the ranking is that of the probability.
    assert np.min(gains, axis=0)[0] >= 1 - 1e-12
    assert (np.mean(gains, axis=0) > [1.05, 1.02]).all(), gains


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_where_any_label_was_turned_alike_the_probability_of_the_label_ranks(rate):
    labels, turned, probabilities = noisy_labels(num=6000)
    true = labels ^ turned
    given = true ^ (np.random.default_rng(5).random(true.shape) < rate)

    found = suspects(given, probabilities)

    doubt = np.where(given, probabilities, 1 - probabilities)
    assert np.diff(doubt[found.rows, found.classes]).min() > -1e-7  # below which float32 tells nothing apart


def test_a_model_that_is_too_sure_of_itself_finds_as_much():
    labels, turned, probabilities = noisy_labels()
    logits = np.log(probabilities / (1 - probabilities))
    too_sure = 1 / (1 + np.exp(-2.5 * logits - 0.7))

    found, as_well = suspects(labels, probabilities), suspects(labels, too_sure)

    precision, same = (average_precision(turned[one.rows, one.classes]) for one in (found, as_well))
    assert same == pytest.approx(precision, rel=0.01)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_label_is_ranked_once_and_shown_as_it_is(dtype):
    labels, _, probabilities = noisy_labels()
    probabilities = probabilities.astype(dtype)

    found = suspects(labels, probabilities)

    assert len(found) == labels.size
    assert len(set(zip(found.rows.tolist(), found.classes.tolist(), strict=True))) == labels.size
    np.testing.assert_array_equal(found.given, labels[found.rows, found.classes])
    np.testing.assert_array_equal(found.probabilities, probabilities[found.rows, found.classes])
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores[0] <= 1
    assert found.scores[-1] >= 0


@pytest.mark.parametrize("by", ["label", "patch"])
@pytest.mark.parametrize("limit", [1, 7, 500, 10**9])
def test_a_limit_is_the_beginning_of_the_whole_ranking(by, limit):
    labels, _, probabilities = noisy_labels()
    probabilities = probabilities.round(1)  # many equal scores

    found, whole = suspects(labels, probabilities, by=by, limit=limit), suspects(labels, probabilities, by=by)

    assert len(found) == min(limit, len(whole))
    for name in ("rows", "classes", "given", "probabilities", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[:limit])
    equal = np.diff(whole.scores) == 0
    assert equal.any()
    places = whole.rows * labels.shape[1] + (whole.classes if by == "label" else 0)
    assert (np.diff(places)[equal] > 0).all()


def test_within_a_class_the_model_alone_decides():
    """Given labels come by rising, absent ones by falling probability."""
    labels, _, probabilities = noisy_labels()
    probabilities = probabilities.clip(1e-6, 1 - 1e-6)  # beyond 2**-24 they count as equal

    found = suspects(labels, probabilities)

    for number in range(labels.shape[1]):
        for given_as, sign in ((True, 1), (False, -1)):
            these = (found.classes == number) & (found.given == given_as)
            assert (np.diff(sign * found.probabilities[these]) >= 0).all()


def test_a_patch_is_ranked_by_all_its_labels_and_shows_the_likeliest():
    labels, _, probabilities = noisy_labels(num=400)

    found, patches = suspects(labels, probabilities), suspects(labels, probabilities, by="patch")

    scores = np.zeros(labels.shape)
    scores[found.rows, found.classes] = found.scores
    expected = 1 - np.prod(1 - scores, axis=1)
    assert sorted(patches.rows.tolist()) == list(range(400))
    np.testing.assert_allclose(patches.scores, expected[patches.rows], rtol=1e-9)
    np.testing.assert_array_equal(patches.classes, scores.argmax(axis=1)[patches.rows])


def test_a_class_of_all_or_of_none_is_not_ranked():
    labels, _, probabilities = noisy_labels()
    labels[:, 1], labels[:, 4] = False, True
    kept = [0, 2, 3, 5]

    found, expected = suspects(labels, probabilities), suspects(labels[:, kept], probabilities[:, kept])

    np.testing.assert_array_equal(found.classes, np.array(kept)[expected.classes])
    np.testing.assert_array_equal(found.rows, expected.rows)
    for by in ("label", "patch"):
        assert len(suspects(labels[:, [1, 4]], probabilities[:, [1, 4]], by=by)) == 0
        assert len(suspects(labels[:0], probabilities[:0], by=by)) == 0


def test_probabilities_of_zero_and_one_are_ranked():
    labels = np.array([[True], [True], [False], [False]])

    found = suspects(labels, np.array([[0.0], [1.0], [0.0], [1.0]], np.float32))

    assert set(found.rows[:2].tolist()) == {0, 3}
    assert np.isfinite(found.scores).all()


YES = np.ones((3, 2), bool)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param(
            {"labels": YES.astype(int)}, TypeError, "labels must be boolean, got int64", id="numbers"
        ),
        pytest.param({"probabilities": YES}, TypeError, "must be floats, got bool", id="not floats"),
        pytest.param({"labels": YES[:2]}, ValueError, r"got \(2, 2\) and \(3, 2\)", id="rows"),
        pytest.param({"labels": YES[0], "probabilities": np.ones(2)}, ValueError, r"got \(2,\)", id="flat"),
        pytest.param({"by": "class"}, ValueError, "label, patch, got 'class'", id="by"),
        pytest.param({"limit": 0}, ValueError, "limit must be at least 1, got 0", id="limit"),
        *(
            pytest.param(
                {"probabilities": np.array([[0, 1], [1, value], [2, 0]])},
                ValueError,
                f"class 1 in row 1 must be in .* got {value}; .* sigmoid",
                id=str(value),
            )
            for value in (np.nan, np.inf, -0.1, 1.1)
        ),
    ],
)
def test_wrong_arguments_of_suspects(arguments, error, message):
    given_as = {"labels": YES, "probabilities": np.full((3, 2), 0.5)} | arguments

    with pytest.raises(error, match=message):
        suspects(given_as.pop("labels"), given_as.pop("probabilities"), **given_as)
