"""Metrics against scikit-free arithmetic and torchmetrics' own modules."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryCalibrationError,
    MulticlassJaccardIndex,
    MultilabelAccuracy,
    MultilabelAUROC,
    MultilabelAveragePrecision,
    MultilabelF1Score,
    MultilabelFBetaScore,
    MultilabelPrecision,
    MultilabelRecall,
    MultilabelSpecificity,
)

from reben_cloud.bigearthnet.labels import CLASSES_ALPHABETICAL
from reben_cloud.schema import Classes
from reben_cloud.training.bootstrap import intervals
from reben_cloud.training.groups import group_numbers
from reben_cloud.training.measures import best_thresholds
from reben_cloud.training.metrics import confusion_of, early_stopping_score, label_metrics, map_metrics

NUM_CLASSES = len(CLASSES_ALPHABETICAL)


def predictions(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, NUM_CLASSES, generator=generator) < 0.2).float()
    noise = torch.rand(count, NUM_CLASSES, generator=generator)
    return (0.4 * labels + 0.6 * noise), labels


def average_precision(scores, truth):
    """By its definition: the mean precision at each positive, best score first (no ties)."""
    order = np.argsort(-scores)
    hits = truth[order].cumsum()
    return float((hits / np.arange(1, len(hits) + 1))[truth[order] == 1].mean())


def test_label_metrics_follow_their_definitions():
    probabilities, labels = predictions(200)

    found = label_metrics(probabilities, labels)

    p, t = probabilities.double().numpy(), labels.numpy()
    expected = [average_precision(p[:, c], t[:, c]) for c in range(NUM_CLASSES)]
    assert [found["per_class"][name]["ap"] for name in CLASSES_ALPHABETICAL] == pytest.approx(
        expected, abs=1e-5
    )
    assert found["macro"]["ap"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert found["micro"]["ap"] == pytest.approx(average_precision(p.ravel(), t.ravel()), abs=1e-5)
    said = p > 0.5
    hits, precision, recall = (said * t).sum(), (said * t).sum() / said.sum(), (said * t).sum() / t.sum()
    assert found["micro"]["precision"] == pytest.approx(precision, abs=1e-6)
    assert found["micro"]["recall"] == pytest.approx(recall, abs=1e-6)
    assert found["micro"]["f1"] == pytest.approx(2 * hits / (said.sum() + t.sum()), abs=1e-6)
    assert found["micro"]["accuracy"] == pytest.approx((said == t).mean(), abs=1e-6)
    assert found["num_patches"] == 200
    assert found["per_class"]["Pastures"]["num_positives"] == int(labels[:, 15].sum())


def test_label_metrics_equal_the_modules_that_the_published_scripts_use():
    probabilities, labels = predictions(300, seed=3)

    found = label_metrics(probabilities, labels)

    for average in ("macro", "micro"):
        ap = MultilabelAveragePrecision(NUM_CLASSES, average=average)(probabilities, labels.int())
        f1 = MultilabelF1Score(NUM_CLASSES, average=average)(probabilities, labels.int())
        assert found[average]["ap"] == pytest.approx(float(ap), abs=1e-6)
        assert found[average]["f1"] == pytest.approx(float(f1), abs=1e-6)


def test_every_macro_mean_is_over_the_classes_that_occur():
    """Torchmetrics and scikit-learn, over the classes that have a positive patch, say the same."""
    probabilities, labels = predictions(50)
    labels[:, [3, 11]] = 0
    there = [c for c in range(NUM_CLASSES) if c not in (3, 11)]

    found = label_metrics(probabilities, labels)

    assert found["num_classes"] == 17
    assert set(found["per_class"]["Broad-leaved forest"].values()) == {None, 0}
    p, t = probabilities[:, there], labels[:, there].int()
    modules = {
        "ap": MultilabelAveragePrecision(17),
        "auroc": MultilabelAUROC(17),
        "f2": MultilabelFBetaScore(2.0, 17),
        "specificity": MultilabelSpecificity(17),
        "f1": MultilabelF1Score(17),
        "precision": MultilabelPrecision(17),
        "recall": MultilabelRecall(17),
        "accuracy": MultilabelAccuracy(17),
    }
    assert found["macro"].keys() == modules.keys() | {"ece"} == found["micro"].keys()
    for name, module in modules.items():
        assert found["macro"][name] == pytest.approx(float(module(p, t)), abs=1e-6), name
    for name, module in (("f1", MultilabelF1Score), ("precision", MultilabelPrecision)):
        whole = module(NUM_CLASSES, average="micro")(probabilities, labels.int())
        assert found["micro"][name] == pytest.approx(float(whole), abs=1e-6)


def test_where_no_class_occurs_there_is_no_mean():
    found = label_metrics(torch.full((3, 19), 0.9), torch.zeros(3, 19))

    assert found["num_classes"] == 0
    assert set(found["macro"].values()) == {None}
    known = {name: value for name, value in found["micro"].items() if value is not None}
    assert known == {"accuracy": 0.0, "specificity": 0.0, "ece": pytest.approx(0.9)}
    assert early_stopping_score(found) == 0.0


def test_equal_probabilities_count_as_torchmetrics_counts_them():
    """Rounded to a few values, so that most are equal to others."""
    probabilities, labels = predictions(400, seed=5)
    probabilities = (probabilities * 8).round() / 8
    probabilities[0, 0], probabilities[1, 1] = 0.0, 1.0

    for dtype in (torch.float16, torch.float32, torch.float64):
        found = label_metrics(probabilities.to(dtype), labels)

        for metric, oracle in (("ap", MultilabelAveragePrecision), ("auroc", MultilabelAUROC)):
            each = oracle(NUM_CLASSES, average="none")(probabilities, labels.int())
            ours = [found["per_class"][name][metric] for name in CLASSES_ALPHABETICAL]
            assert ours == pytest.approx(each.tolist(), abs=1e-6)
        pooled = BinaryAUROC()(probabilities.ravel(), labels.ravel().int())
        assert found["micro"]["auroc"] == pytest.approx(float(pooled), abs=1e-6)


def test_calibration_and_samplewise_metrics_equal_torchmetrics():
    probabilities, labels = predictions(500, seed=2)
    whole = labels.int()

    found = label_metrics(probabilities, labels)

    error = BinaryCalibrationError(n_bins=15, norm="l1")
    assert found["micro"]["ece"] == pytest.approx(
        float(error(probabilities.ravel(), whole.ravel())), abs=1e-6
    )
    each = [float(error(probabilities[:, c], whole[:, c])) for c in range(NUM_CLASSES)]
    assert found["macro"]["ece"] == pytest.approx(np.mean(each), abs=1e-6)
    options = {"average": "micro", "multidim_average": "samplewise"}
    modules = {
        "f1": MultilabelF1Score(NUM_CLASSES, **options),
        "f2": MultilabelFBetaScore(2.0, NUM_CLASSES, **options),
        "precision": MultilabelPrecision(NUM_CLASSES, **options),
        "recall": MultilabelRecall(NUM_CLASSES, **options),
        "specificity": MultilabelSpecificity(NUM_CLASSES, **options),
        "accuracy": MultilabelAccuracy(NUM_CLASSES, **options),
    }
    assert found["samples"].keys() == modules.keys()
    for name, module in modules.items():
        oracle = module(probabilities[..., None], whole[..., None]).mean()
        assert found["samples"][name] == pytest.approx(float(oracle), abs=1e-6), name


def test_a_class_that_every_patch_has_has_no_auroc():
    probabilities, labels = predictions(30)
    labels[:, 4] = 1

    found = label_metrics(probabilities, labels)

    assert found["per_class"][CLASSES_ALPHABETICAL[4]]["auroc"] is None
    others = [values["auroc"] for values in found["per_class"].values() if values["auroc"] is not None]
    assert found["macro"]["auroc"] == pytest.approx(np.mean(others))


def test_thresholds_are_the_best_that_there_are():
    probabilities, labels = predictions(80, seed=9)
    labels[:, 2] = 0
    p, t = probabilities.numpy(), labels.numpy() > 0

    for beta, metric in ((1.0, "f1"), (2.0, "f2")):
        each = best_thresholds(p, t, beta=beta)
        one = best_thresholds(p, t, per="global", beta=beta)

        found = label_metrics(probabilities, labels, thresholds=each)
        assert found["thresholds"] == list(each)
        assert each[2] == 0.5
        tried = [
            label_metrics(probabilities, labels, thresholds=[cut] * NUM_CLASSES)
            for cut in np.unique(np.concatenate([p.ravel()[::7], [0.0, 0.5], one]))
        ]
        for c, name in enumerate(CLASSES_ALPHABETICAL):
            if c != 2:
                best = max(one["per_class"][name][metric] for one in tried)
                assert found["per_class"][name][metric] >= best - 1e-9
        assert len(set(one)) == 1
        pooled = label_metrics(probabilities, labels, thresholds=one)["micro"][metric]
        assert pooled >= max(one["micro"][metric] for one in tried) - 1e-9


def test_a_threshold_lets_through_what_it_was_chosen_for():
    """Between neighbouring floats there is no middle."""
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))

    (cut,) = best_thresholds(np.array([[low], [high]]), np.array([[False], [True]]))

    assert label_metrics(torch.tensor([[low], [high]]), torch.tensor([[0.0], [1.0]]),
                         classes=Classes(names=("one",)), thresholds=[cut])["macro"]["f1"] == 1.0  # fmt: skip


def test_intervals_are_those_of_patches_drawn_by_squares():
    """Beside a bootstrap that copies rows, with the same draws."""
    probabilities, labels = predictions(600, seed=1)
    squares = np.arange(600) // 50 * 7
    p, t = probabilities.numpy(), labels.numpy() > 0
    cuts = np.full(NUM_CLASSES, 0.5, np.float32)

    found = intervals(p, t, squares, cuts, num_draws=70, seed=3)

    words = np.random.Philox(key=3).random_raw(70 * 12).reshape(70, 12) % 12
    copies = []
    for drawn in words:
        rows = torch.from_numpy(np.concatenate([np.flatnonzero(squares == 7 * s) for s in drawn]))
        copies.append(label_metrics(probabilities[rows], labels[rows]))
    assert (found["num_squares"], found["num_draws"], found["level"]) == (12, 70, 0.95)
    for mean in ("macro", "micro"):
        assert found[mean].keys() == {"ap", "f1", "f2", "precision", "recall", "specificity", "accuracy"}
        for name, ends in found[mean].items():
            expected = np.quantile([one[mean][name] for one in copies], [0.025, 0.975])
            assert ends == pytest.approx(expected, abs=5e-3 if name == "ap" else 1e-9), (mean, name)
    assert intervals(p, t, np.zeros(600, np.int64), cuts) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.01, 1.5])
def test_a_probability_that_is_none_is_refused(value):
    probabilities, labels = predictions(5000)
    probabilities[1234, 15] = value

    with pytest.raises(
        ValueError, match=r"probabilities must be finite, in \[0, 1\].*patch 1234, class Pastures; 1 of"
    ):
        label_metrics(probabilities, labels)


@pytest.mark.parametrize("value", [float("nan"), 0.5, 2, -1, float("inf")])
def test_a_label_that_is_neither_0_nor_1_is_refused(value):
    probabilities, labels = predictions(50)
    labels[7, 0] = value

    with pytest.raises(
        ValueError, match=r"labels must be 0 or 1, got .* for patch 7, class Agro-forestry areas"
    ):
        label_metrics(probabilities, labels)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        pytest.param(torch.rand(5, 19), torch.zeros(4, 19), id="other patches"),
        pytest.param(torch.rand(5, 18), torch.zeros(5, 18), id="a class too few"),
        pytest.param(torch.rand(95), torch.zeros(95), id="flat"),
        pytest.param(torch.zeros(5, 19, dtype=torch.int64), torch.zeros(5, 19), id="whole numbers"),
    ],
)
def test_other_shapes_and_types_are_refused(probabilities, labels):
    with pytest.raises(ValueError, match=r"must have the shape|must be floating"):
        label_metrics(probabilities, labels)


def test_what_is_no_class_or_count_is_refused():
    pixels = torch.zeros(2, 3, 3, dtype=torch.int64)
    group = torch.zeros(2, dtype=torch.int64)

    for predicted, target, groups in (
        (pixels + 19, pixels, group),
        (pixels - 1, pixels, group),
        (pixels, pixels, group + 1),
        (pixels, pixels, group - 1),
        (pixels.float() * float("nan"), pixels, group),
        (pixels, pixels.float(), group),
        (pixels, pixels[:1], group),
    ):
        with pytest.raises(ValueError, match=r"must be|differ"):
            confusion_of(predicted, target, groups, 1)
    for confusion in (
        torch.full((19, 19), -1),
        torch.full((19, 19), float("nan")),
        torch.zeros(18, 18, dtype=torch.int64),
    ):
        with pytest.raises(ValueError, match="confusion must"):
            map_metrics(confusion)
    with pytest.raises(ValueError, match="must be finite, got nan"):
        early_stopping_score({"macro": {"ap": float("nan")}})


def test_a_small_type_of_class_is_counted_like_a_large_one():
    target = torch.tensor([[[18, 17], [255, 3]]], dtype=torch.uint8)
    group = torch.tensor([1], dtype=torch.uint8)

    found = confusion_of(target.clamp(max=18), target, group, 2)

    assert torch.equal(found, confusion_of(target.clamp(max=18).long(), target.long(), group.long(), 2))
    assert found[1, 18, 18] == 1


def test_a_class_that_is_only_predicted_has_no_part_in_the_mean_of_maps():
    confusion = torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.int64)
    confusion[0, 0], confusion[0, 5] = 3, 1

    found = map_metrics(confusion)

    assert found["num_classes"] == 1
    assert found["macro"] == {"iou": 0.75, "f1": pytest.approx(6 / 7)}
    assert found["per_class"][CLASSES_ALPHABETICAL[5]] == {"iou": None, "f1": None, "num_pixels": 0}


def test_no_patch_is_refused():
    with pytest.raises(ValueError, match="no patch was predicted"):
        label_metrics(torch.zeros(0, 19), torch.zeros(0, 19))


def test_map_metrics_equal_torchmetrics_and_leave_out_what_is_not_labelled():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, NUM_CLASSES, (6, 30, 30), generator=generator)
    predicted = torch.where(
        torch.rand(6, 30, 30, generator=generator) < 0.6, target, (target + 1) % NUM_CLASSES
    )
    target[:, :3] = 255
    group = torch.tensor([0, 1, 0, 1, 1, 0])

    counts = confusion_of(predicted, target, group, 2)
    found = map_metrics(counts.sum(0))

    assert found["num_pixels"] == 6 * 27 * 30
    oracle = MulticlassJaccardIndex(NUM_CLASSES, average="none", ignore_index=255)(predicted, target)
    ious = [found["per_class"][name]["iou"] for name in CLASSES_ALPHABETICAL]
    assert ious == pytest.approx(oracle.tolist(), abs=1e-6)
    assert found["macro"]["iou"] == pytest.approx(float(oracle.mean()), abs=1e-6)
    alone = confusion_of(predicted[group == 1], target[group == 1], torch.zeros(3, dtype=torch.int64), 1)
    assert torch.equal(counts[1], alone[0])


def test_maps_without_a_labelled_pixel_have_no_iou():
    found = map_metrics(torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.int64))

    assert found["macro"]["iou"] is None
    assert found["accuracy"] is None
    assert early_stopping_score(found) == 0.0


class Rows:
    """The part of a selection that the groups are made from."""

    def __init__(self, **columns):
        self.columns = columns

    def column(self, name):
        return pa.chunked_array([self.columns[name]])


def test_groups_are_the_country_the_season_and_the_split():
    times = pa.array(np.array(["2017-06-13", "2018-01-02", "2017-08-01"], "datetime64[us]"))
    rows = Rows(datetime=times, **{"reben:country": pa.array(["Serbia", "Austria", "Serbia"])})

    assert group_numbers(rows, "country")[0] == ["Austria", "Serbia"]
    assert group_numbers(rows, "country")[1].tolist() == [1, 0, 1]
    assert group_numbers(rows, "season")[0] == ["summer", "winter"]
    assert group_numbers(rows, "season")[1].tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="by must be one of country, season, split, got 'tile'"):
        group_numbers(rows, "tile")


def test_a_threshold_is_never_chosen_for_what_it_cannot_let_through():
    """Nothing is below 0, so a probability of 0 is above no threshold."""
    probabilities = np.array([[0.9], [0.3], [0.0], [0.0], [0.0]], np.float32)
    labels = np.array([[True], [False], [True], [True], [True]])

    (cut,) = best_thresholds(probabilities, labels)

    assert 0.3 <= cut < 0.9
    assert best_thresholds(probabilities[2:], labels[2:]) == (0.5,)
