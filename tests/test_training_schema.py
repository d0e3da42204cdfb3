"""Training on a dataset that is not BigEarthNet: other arrays, sizes, dtypes, bands and classes."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from reben_cloud.bigearthnet.inputs import BandStatistics, choose_bands, statistics_of
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import RebenError
from reben_cloud.schema import ArraySpec, Classes, Modality, Schema, TensorSpec
from reben_cloud.torch import MapTargets, ModelInput
from reben_cloud.training.compute import compute_context
from reben_cloud.training.config import config_from, load_recipe
from reben_cloud.training.feed import modalities_for
from reben_cloud.training.learner import Learner
from reben_cloud.training.metrics import confusion_of, early_stopping_score, label_metrics, map_metrics
from reben_cloud.training.modelcard import write_card
from reben_cloud.training.models import ModelSpec, create_model, load_pretrained, save_model
from reben_cloud.training.objective import Objective
from reben_cloud.training.plots import colors_of, confusion_plot, per_class_bars, precision_recall_plot
from reben_cloud.training.train import model_spec
from tests.test_models import validator


def image(name, size, dtype="float32", **options):
    return TensorSpec(name=name, shape=(size, size), dtype=dtype, pixel_m=600 / size, **options)


def stack(name, *tensors, axis):
    return ArraySpec(
        name=name, tensors=tensors, stacked=True, dims=(axis, f"{axis}_y", f"{axis}_x"), zarr_name=name
    )


OPTIC = Modality(
    name="optic",
    title="Camera",
    tensors=(image("blue", 60), image("red", 60), image("nir", 60), image("edge", 30), image("haze", 30)),
    arrays=(
        stack("fine", "blue", "red", "nir", axis="channel"),
        stack("coarse", "edge", "haze", axis="channel30"),
    ),
)
HEIGHT = Modality(name="height", tensors=(image("dem", 60, "int16", units="m"),))
WORDS = Modality(name="words", tensors=(TensorSpec(name="vector", shape=(8,), dtype="float16"),))
COVER = Modality(name="cover", tensors=(image("crop", 30, "int32"),))
CLASSES = Classes(
    names=("wheat", "rye", "maize", "beet", "fallow", "forest", "water"),
    codes=((10, 11), (20,), (30,), (40,), (50,), (60_000,), (7,)),
)
FIELDS = Schema(
    name="Fields",
    modalities=(OPTIC, HEIGHT, WORDS, COVER),
    classes=CLASSES,
    patch_m=600,
    map_array="cover",
)
BANDS = ("blue", "red", "nir", "edge", "haze", "dem")
STATISTICS = {name: BandStatistics(mean=n / 2, std=1 + n) for n, name in enumerate(BANDS)}


def batch_of(count=8, seed=0):
    random = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, 7, generator=random) < 0.3).float()
    # The first class is bright in blue, the second one in haze: something to learn.
    fine = torch.randn(count, 3, 60, 60, generator=random)
    coarse = torch.randn(count, 2, 30, 30, generator=random)
    fine[:, 0] += 3 * labels[:, 0].view(-1, 1, 1)
    coarse[:, 1] += 3 * labels[:, 1].view(-1, 1, 1)
    # And most pixels of the map are wheat.
    codes = torch.tensor([10] * 12 + [11, 20, 30, 40, 50, 60_000, 7, 0, -5, 70_000], dtype=torch.int32)
    return {
        "fine": fine,
        "coarse": coarse,
        "height": torch.randint(-400, 3000, (count, 60, 60), generator=random, dtype=torch.int16),
        "cover": codes[torch.randint(0, len(codes), (count, 30, 30), generator=random)],
        "labels": labels,
        "index": torch.arange(count),
        "valid": torch.ones(count, dtype=torch.bool),
    }


def recipe(*overrides):
    short = ["epochs=1", "batch_size=8", "warmup_steps=0", "lr=0.003", "drop_path_rate=0.0"]
    given = [
        f"statistics.{name}.{key}={value}"
        for name, one in STATISTICS.items()
        for key, value in (("mean", one.mean), ("std", one.std))
    ]
    small = ["architecture=test_resnet", "bands=ALL"]
    return load_recipe("resnet50", overrides=[*small, *short, *given, *overrides], schema=FIELDS)


def test_bands_are_the_square_images_in_order_and_the_map_is_not_one():
    assert choose_bands("ALL", schema=FIELDS) == BANDS == tuple(FIELDS.bands)
    assert choose_bands("dem, blue", schema=FIELDS) == ("dem", "blue")
    assert FIELDS.bands["haze"].array.name == "coarse"
    assert FIELDS.bands["haze"].position == 1
    assert FIELDS.bands["dem"].size_px == 60
    for name, message in (
        (
            "RGB",
            r"'RGB' is neither a band set \(ALL\) nor a band of Fields \(blue, red, nir, edge, haze, dem\)",
        ),
        ("crop", "'crop' is a tensor of Fields, but not a band"),
        ("vector", "'vector' is a tensor of Fields, but not a band"),
        ("", "'' is neither"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_bands(name, schema=FIELDS)


def test_a_set_of_which_a_root_has_a_part_names_what_is_missing():
    with pytest.raises(
        ValueError, match="'VV' is a band of reBEN that this dataset does not have; it has B02"
    ):
        choose_bands("S1_10m_20m", schema=REBEN.only(["s2", "map"]))
    assert choose_bands("RGB", schema=REBEN.only(["s2", "map"])) == ("B04", "B03", "B02")


def test_a_band_of_two_modalities_is_named_with_its_modality():
    before = replace(HEIGHT, name="before", key_suffix=".before", arrays=())
    both = replace(FIELDS, modalities=(before, *FIELDS.modalities))

    assert "dem" not in both.bands
    assert choose_bands("before:dem,blue,height:dem", schema=both) == ("before:dem", "blue", "height:dem")
    with pytest.raises(ValueError, match="'dem' is in several modalities; write before:dem or height:dem"):
        choose_bands("dem", schema=both)


def test_what_has_a_name_of_reben_but_other_units_does_not_get_its_statistics():
    def schema(**options):
        tensor = image("B02", 60, **options)
        return Schema(
            name="Other", modalities=(Modality(name="x", tensors=(tensor,)),), classes=CLASSES, patch_m=600
        )

    same = statistics_of(("B02",), schema=schema(dtype="uint16", units="1e-4"))

    assert same == statistics_of(("B02",), schema=REBEN)
    for other in (schema(dtype="float32", units="1e-4"), schema(dtype="uint16", units="1e-3")):
        with pytest.raises(ValueError, match=r"band B02 of Other is not one of reBEN's.*statistics\.B02"):
            ModelInput("B02", schema=other)
        assert ModelInput("B02", schema=other, normalize=None).bands == ("B02",)
    with pytest.raises(ValueError, match="std must be finite and above 0"):
        BandStatistics(mean=0.0, std=0.0)


@pytest.mark.parametrize("count", [3, 70])
@pytest.mark.parametrize("size", [None, 30, 45])
@pytest.mark.parametrize("bands", [BANDS, ("haze", "dem", "nir", "blue", "red", "dem")])
def test_an_image_is_what_plain_torch_makes_of_the_arrays(bands, size, count):
    batch = batch_of(count)
    planes = {
        **{name: batch["fine"][:, n] for n, name in enumerate(("blue", "red", "nir"))},
        **{name: batch["coarse"][:, n] for n, name in enumerate(("edge", "haze"))},
        "dem": batch["height"],
    }

    found = ModelInput(bands, schema=FIELDS, statistics=STATISTICS, size=size)(batch)

    assert found.shape == (count, len(bands), *(size or 60,) * 2)
    for channel, name in enumerate(bands):
        plain = (planes[name].float() - STATISTICS[name].mean) / STATISTICS[name].std
        expected = torch.nn.functional.interpolate(plain[:, None], size or 60, mode="nearest")
        torch.testing.assert_close(found[:, channel], expected[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float8_e5m2", "float8_e4m3fn", "int8", "uint8", "float64", "int64"]
)
def test_every_dtype_is_read_as_its_values(dtype):
    tensor = TensorSpec(name="x", shape=(20, 20), dtype=dtype, pixel_m=30)
    schema = replace(FIELDS, modalities=(Modality(name="m", tensors=(tensor,)),), map_array=None)
    values = torch.randint(0, 8, (5, 20, 20)).to(dict(vars(torch))[dtype])
    held = torch.from_numpy(values.view(torch.uint8).numpy().view(tensor.storage))

    image = ModelInput("ALL", schema=schema, normalize=None)({"m": held.reshape(5, 20, 20)})

    assert torch.equal(image[:, 0], values.float())


def test_metrics_are_of_the_classes_given():
    random = torch.Generator().manual_seed(1)
    probabilities = torch.rand(50, 7, generator=random)
    labels = (torch.rand(50, 7, generator=random) < 0.4).float()

    found = label_metrics(probabilities, labels, classes=CLASSES)
    one = label_metrics(probabilities[:, :1], labels[:, :1], classes=Classes(names=("wheat",)))

    assert tuple(found["per_class"]) == CLASSES.names
    assert found["num_classes"] == 7
    assert one["per_class"]["wheat"] == found["per_class"]["wheat"]
    assert (
        one["macro"]
        == one["micro"]
        == {k: v for k, v in found["per_class"]["wheat"].items() if k in one["macro"]}
    )
    with pytest.raises(ValueError, match=r"must have the shape \(50, 19\)"):
        label_metrics(probabilities, labels)
    probabilities[3, 2] = 2.0
    with pytest.raises(ValueError, match="for patch 3, class maize"):
        label_metrics(probabilities, labels, classes=CLASSES)


def test_codes_of_a_map_become_classes_and_are_counted():
    batch = batch_of(16)

    target = MapTargets(CLASSES)(batch["cover"])
    finer = MapTargets(CLASSES, size=60)(batch["cover"])
    counts = confusion_of(target.clamp(min=0), target, torch.zeros(16, dtype=torch.int64), 1, num_classes=7)
    found = map_metrics(counts[0], classes=CLASSES)

    class_of = {code: n for n, codes in enumerate(CLASSES.codes) for code in codes}
    assert target.flatten().tolist() == [class_of.get(c, -1) for c in batch["cover"].flatten().tolist()]
    assert torch.equal(finer, target.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert found["accuracy"] == 1.0
    assert found["per_class"]["wheat"]["num_pixels"] == int((target == 0).sum())
    assert early_stopping_score(found) == 1.0
    with pytest.raises(ValueError, match=r"class 'a' has the code 70000.* must be in \[0, 65,536\)"):
        MapTargets(Classes(names=("a",), codes=((70_000,),)))


@pytest.mark.parametrize("task", ["labels", "map"])
def test_an_epoch_of_steps_learns_from_it(task):
    config = recipe(f"task={task}", "modality_dropout=0.1")
    spec = model_spec(config, FIELDS)
    batches = [batch_of(8, seed) for seed in range(12)]
    with compute_context() as compute:
        objective = Objective(config, spec, FIELDS, None)
        learner = Learner(config, spec, objective, compute, num_steps=24)
        learner.model.train()

        steps = [
            learner.step(batch, number=number, epoch=epoch)
            for epoch in range(2)
            for number, batch in enumerate(batches, 12 * epoch)
        ]

    losses = [float(step.loss.detach()) for step in steps]
    assert steps[0].logits.shape == ((8, 7) if task == "labels" else (8, 7, 60, 60))
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    assert learner.first_not_finite() is None
    assert modalities_for(spec, FIELDS) == (
        ("optic", "height") if task == "labels" else ("optic", "height", "cover")
    )


def test_a_model_keeps_its_classes_and_statistics_and_other_data_is_refused(tmp_path):
    config = recipe()
    spec = model_spec(config, FIELDS)
    with compute_context() as compute:
        learner = Learner(config, spec, Objective(config, spec, FIELDS, None), compute, num_steps=1)

    save_model(tmp_path, learner.model, spec)
    model, found = load_pretrained(tmp_path)

    assert found == spec
    assert found.classes == CLASSES
    assert found.statistics == STATISTICS
    assert model(torch.zeros(1, 6, 60, 60)).shape == (1, 7)
    with pytest.raises(ValueError, match="number 0 is 'wheat' and not 'Agro-forestry areas'"):
        modalities_for(found, REBEN)
    longer = replace(FIELDS, classes=Classes(names=(*CLASSES.names, "ice")), map_array=None)
    with pytest.raises(ValueError, match="the classes of the model are not those of Fields: 7 and not 8"):
        modalities_for(found, longer)
    with pytest.raises(ValueError, match="the model takes the band blue, and Fields has dem"):
        modalities_for(found, FIELDS.only(["height", "cover"]))


def test_a_folder_of_version_1_is_of_rebens_classes_and_a_later_one_is_refused(tmp_path):
    spec = ModelSpec(architecture="test_resnet", bands=("VV", "VH"))
    with compute_context() as compute:
        config = load_recipe("resnet50", overrides=["architecture=test_resnet", "bands=S1"])
        learner = Learner(config, spec, Objective(config, spec, REBEN, None), compute, num_steps=1)
    save_model(tmp_path, learner.model, spec)
    first = {
        "architecture": "test_resnet",
        "bands": ["VV", "VH"],
        "task": "labels",
        "drop_rate": 0.0,
        "drop_path_rate": 0.0,
        "classes": sorted(REBEN.classes.names),
        "image_px": 120,
        "version": 1,
    }
    (tmp_path / "reben_cloud.json").write_text(json.dumps(first))
    (tmp_path / "SHA256SUMS").unlink()  # there was none

    assert load_pretrained(tmp_path)[1] == spec
    (tmp_path / "reben_cloud.json").write_text(json.dumps({**first, "version": 3}))
    with pytest.raises(RebenError, match="version 3, this release reads up to 2"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["Fields: (Wälder & Wiesen)", "Поля", "9 lives.", REBEN.name])
def test_any_name_of_a_dataset_makes_a_valid_item_and_card(tmp_path, shared, name):
    config, schema = recipe(), replace(FIELDS, name=name)
    spec = model_spec(config, schema)
    save_model(tmp_path, create_model(spec), spec)
    metrics = label_metrics(torch.eye(7), torch.eye(7), classes=CLASSES)

    write_card(
        tmp_path,
        spec,
        {**metrics, "subset": "test", "best_epoch": 0, "validation_score": 1.0},
        config,
        schema=schema,
    )

    item = json.loads((tmp_path / "item.json").read_text())
    for url in item["stac_extensions"]:
        validator(shared / "stac_schemas", url).validate(item)
    assert item["properties"]["description"] == f"test_resnet trained on {name}"
    head = (tmp_path / "README.md").read_text().split("---\n")[1]
    assert all(isinstance(tag, str) for tag in yaml.safe_load(head)["tags"])


@pytest.mark.parametrize("task", ["labels", "map"])
def test_its_card_and_plots_name_its_bands_and_classes(tmp_path, shared, task):
    config = recipe(f"task={task}")
    spec = model_spec(config, FIELDS)
    with compute_context() as compute:
        learner = Learner(config, spec, Objective(config, spec, FIELDS, None), compute, num_steps=1)
    save_model(tmp_path, learner.model, spec)
    labels = torch.eye(7)
    metrics = (
        label_metrics(labels, labels, classes=CLASSES)
        if task == "labels"
        else {"num_patches": 7, **map_metrics(torch.eye(7).long(), classes=CLASSES)}
    )
    result = {**metrics, "subset": "test", "best_epoch": 0, "validation_score": 1.0}

    write_card(tmp_path, spec, result, config, schema=FIELDS)

    item = json.loads((tmp_path / "item.json").read_text())
    for url in (
        "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json",
        *item["stac_extensions"],
    ):
        validator(shared / "stac_schemas", url).validate(item)
    assert item["geometry"] is None
    assert item["properties"]["bands"][3] == {"name": "edge", "description": "Camera, 20 m"}
    assert item["properties"]["mlm:input"][0]["value_scaling"][5] == {
        "type": "z-score",
        "mean": 2.5,
        "stddev": 6.0,
    }
    classes = item["properties"]["mlm:output"][0]["classification:classes"]
    assert [entry["description"] for entry in classes] == list(CLASSES.names)
    card = (tmp_path / "README.md").read_text()
    assert "# test_resnet on Fields, blue red nir edge haze dem" in card
    assert "7 logits, classes in this order: wheat; rye; maize" in card
    assert "BigEarthNet" not in card.partition("## Training")[0]
    bars = per_class_bars(metrics, CLASSES).axes[0]
    assert [tick.get_text() for tick in bars.get_yticklabels()][6] == "water  (1)"
    drawn = (
        confusion_plot(torch.eye(7), CLASSES)
        if task == "map"
        else precision_recall_plot(labels, labels, CLASSES)
    )
    assert drawn.axes
    assert len(set(colors_of(CLASSES))) == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"bands": "blue"}, r"band blue of Fields is not one of reBEN's", id="no statistics"),
        pytest.param(
            {"statistics": {"blue": {"mean": 1}}}, r"statistics\.blue needs mean and std", id="half"
        ),
        pytest.param({"statistics": {"blue": 3}}, r"statistics\.blue is a table", id="number"),
        pytest.param(
            {"statistics": {"blue": {"mean": 1, "std": -1}}},
            r"statistics\.blue\.std must be finite",
            id="negative",
        ),
        pytest.param(
            {"statistics": {"B02": {"mean": 1, "std": 1}}, "bands": "ALL"},
            r"statistics\.B02: Fields has no such band",
            id="unknown",
        ),
        pytest.param({"bands": "S1_10m_20m"}, "'S1_10m_20m' is neither a band set", id="a set of reBEN"),
    ],
)
def test_what_a_recipe_lacks_for_a_dataset_is_said(values, message):
    with pytest.raises(ValueError, match=message):
        config_from({"bands": "ALL", **values}, schema=FIELDS)


def test_without_a_map_or_two_modalities_there_is_nothing_to_predict_or_to_lose():
    given = {name: {"mean": one.mean, "std": one.std} for name, one in STATISTICS.items()}

    with pytest.raises(ValueError, match="task must be 'labels': Fields has no map"):
        config_from(
            {"bands": "ALL", "task": "map", "statistics": given}, schema=FIELDS.only(["optic", "height"])
        )
    with pytest.raises(ValueError, match="0 unless the bands are of several modalities"):
        config_from({"bands": "blue,haze", "modality_dropout": 0.1, "statistics": given}, schema=FIELDS)
    config = recipe()
    assert config_from(json.loads(config.to_json()), schema=FIELDS) == config
