"""How well mistakes among labels are found, beside cleanlab: average precision on noise that was made.

    python tests/benchmarks/bench_suspects.py [--patches 4000] [--seeds 3]

19 classes as frequent as BigEarthNet's, which depend on each other through 16 hidden features. A model (logistic
regression per class, four folds, trained on the noisy labels) sees those features blurred, little or much; its
probabilities are as it gives them, or overconfident as a deep network's (logits times 2.5). Noise: labels missing; as
many missing as added; or every label turned with one probability, so that most labels of a rare class are wrong.
cleanlab ranks by its default (self-confidence) and with probabilities adjusted by its class thresholds. Needs cleanlab
and the scikit-learn that comes with it (tests/benchmarks/requirements.txt); says so and ends where they are not
installed. Its seeds are not those by which `suspects` was made.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import time

import numpy as np

from reben_cloud.ranking.suspects import suspects

FREQUENCIES = [0.14, 0.006, 0.29, 0.06, 0.05, 0.26, 0.21, 0.23, 0.04, 0.28]
FREQUENCIES += [0.32, 0.31, 0.02, 0.02, 0.31, 0.04, 0.003, 0.10, 0.13]
NOISES, RATES, BLURS, SHARPNESSES = (
    ("balanced", "missing", "uniform"),
    (0.02, 0.1, 0.2),
    (0.3, 1.0),
    (1.0, 2.5),
)


def turn(true, noise, rate, rng):
    """The labels with mistakes."""
    given = true.copy()
    for number, column in enumerate(true.T):
        count = int(rate * column.sum())
        if noise == "uniform":
            given[:, number] ^= rng.random(len(column)) < rate
            continue
        given[rng.choice(np.flatnonzero(column), count, replace=False), number] = False
        if noise == "balanced":
            given[rng.choice(np.flatnonzero(~column), count, replace=False), number] = True
    return given


def simulate(seed, num_patches, noise, rate, blur):
    """Given labels, whether each is wrong, and logits of a model out of sample."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((num_patches, 16))
    scores = hidden @ rng.normal(0, 0.9, (16, len(FREQUENCIES))) + rng.logistic(
        0, 0.7, (num_patches, len(FREQUENCIES))
    )
    true = scores > [np.quantile(s, 1 - f) for s, f in zip(scores.T, FREQUENCIES, strict=True)]
    given = turn(true, noise, rate, rng)
    seen = hidden + rng.normal(0, blur, hidden.shape)
    fold = rng.integers(0, 4, num_patches)
    logits = np.empty(true.shape)
    for number, part in itertools.product(range(len(FREQUENCIES)), range(4)):
        model = LogisticRegression(max_iter=200).fit(seen[fold != part], given[fold != part, number])
        logits[fold == part, number] = model.decision_function(seen[fold == part])
    return given, given != true, logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.patches < 2000:
        parser.error(
            "--patches must be at least 2000: the rarest class is in 3 of 1,000 and must be in every fold"
        )
    if not importlib.util.find_spec("cleanlab"):
        print("skipped: cleanlab is not installed (pip install cleanlab)")
        return
    from cleanlab.multilabel_classification import rank
    from sklearn.metrics import average_precision_score

    names = ("ours", "cleanlab", "cleanlab, adjusted")
    results: dict[str, list[list[float]]] = {
        f"{noise}, by {by}": [] for noise in NOISES for by in ("label", "patch")
    }
    took = dict.fromkeys(names[:2], 0.0)
    print(f"{'noise, rate, blur, sharpness':32} AP by label: {', '.join(names)}; by patch: the same")
    for noise, rate, blur in itertools.product(NOISES, RATES, BLURS):
        for sharpness in SHARPNESSES:
            by_label, by_patch = [], []
            for seed in range(100, 100 + options.seeds):
                given, wrong, logits = simulate(seed, options.patches, noise, rate, blur)
                probabilities = 1 / (1 + np.exp(-sharpness * logits))
                lists = [np.flatnonzero(row).tolist() for row in given]
                start = time.perf_counter()
                found = suspects(given, probabilities)
                took["ours"] += time.perf_counter() - start
                labels = np.zeros(given.shape)
                labels[found.rows, found.classes] = found.scores
                found = suspects(given, probabilities, by="patch")
                patches = np.zeros(len(given))
                patches[found.rows] = found.scores
                start = time.perf_counter()
                plain = rank.get_label_quality_scores_per_class(lists, probabilities)
                took["cleanlab"] += time.perf_counter() - start
                adjusted = rank.get_label_quality_scores_per_class(
                    lists, probabilities, adjust_pred_probs=True
                )
                by_label.append(
                    [average_precision_score(wrong.ravel(), s.ravel()) for s in (labels, -plain, -adjusted)]
                )
                whole = rank.get_label_quality_scores(lists, probabilities)
                whole_adjusted = rank.get_label_quality_scores(lists, probabilities, adjust_pred_probs=True)
                by_patch.append(
                    [
                        average_precision_score(wrong.any(axis=1), s)
                        for s in (patches, -whole, -whole_adjusted)
                    ]
                )
            rows = [np.median(by_label, axis=0).tolist(), np.median(by_patch, axis=0).tolist()]
            for by, row in zip(("label", "patch"), rows, strict=True):
                results[f"{noise}, by {by}"].append(row)
            shown = "; ".join(", ".join(f"{value:.3f}" for value in row) for row in rows)
            print(f"{noise:10} {rate:5} {blur:5} {sharpness:5}     {shown}", flush=True)
    for name, table in results.items():
        values = np.array(table)
        means = ", ".join(f"{names[at]} {value:.3f}" for at, value in enumerate(values.mean(axis=0)))
        ratio = values[:, 0] / values[:, 1]
        share = np.mean(ratio >= 0.999)
        print(
            f"{name:20} mean {means}; ours / cleanlab {ratio.min():.2f} to {ratio.max():.2f}, no worse {share:.0%}"
        )
    print(
        f"seconds for all rankings by label: {', '.join(f'{name} {value:.2f}' for name, value in took.items())}"
    )


if __name__ == "__main__":
    main()
