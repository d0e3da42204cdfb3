"""What a model's folder tells people and catalogs: ``README.md`` and ``item.json`` (STAC, MLM extension)."""

from __future__ import annotations

import dataclasses
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch
from safetensors import safe_open

from reben_cloud.bigearthnet.inputs import statistics_of
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.files.paths import local_path
from reben_cloud.files.whole import write_whole
from reben_cloud.root import layout
from reben_cloud.schema import Classes, Schema
from reben_cloud.training.checksums import vouch_for_another
from reben_cloud.training.config import TrainConfig
from reben_cloud.training.metrics import TrainResult
from reben_cloud.training.models import ModelSpec, write_json
from reben_cloud.training.smp import is_smp, smp_version

EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.5.2/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
)
"""STAC extensions of the item."""

ITEM = "item.json"

Json = dict[str, object]

DATASET_BBOX = (-9.0003, 36.9569, 31.5985, 68.0217)
"""West, south, east, north of BigEarthNet v2.0, degrees: where a model was trained is where it may be used."""


def write_card(
    folder: str | os.PathLike[str],
    spec: ModelSpec,
    metrics: TrainResult,
    config: TrainConfig,
    *,
    schema: Schema = REBEN,
) -> None:
    """Write ``README.md`` and ``item.json`` beside a model's weights.

    Args:
        folder: Of the model, written by `models.save_model`.
        spec: Facts of the model.
        metrics: What `train.train` returns.
        config: How it was trained.
        schema: What it was trained on.
    """
    folder = local_path(folder, "the folder of a model")
    write_json(folder / ITEM, model_item(folder, spec, metrics, config, schema))
    vouch_for_another(folder, ITEM)  # not the README, which people are meant to edit
    write_whole(folder / "README.md", model_card(spec, metrics, config, schema).encode())


def model_card(spec: ModelSpec, metrics: TrainResult, config: TrainConfig, schema: Schema) -> str:
    """The card as Markdown with a YAML head, as the Hugging Face hub reads it."""
    task = "Classification" if spec.task == "labels" else "Segmentation"
    subject = (
        "the land-cover classes of a patch" if spec.task == "labels" else "the land cover of every pixel"
    )
    names = list(metrics["macro"])
    rows = ["| | " + " | ".join(name.upper() for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for mean, means in (("macro", metrics["macro"]), ("micro", metrics.get("micro"))):
        if means is not None:
            values = [means[name] for name in names]
            shown = " | ".join("–" if value is None else f"{value:.4f}" for value in values)
            rows.append(f"| {mean} | {shown} |")
    order = "alphabetical order" if list(spec.classes.names) == sorted(spec.classes.names) else "this order: "
    if order.endswith(": "):
        order += "; ".join(spec.classes.names)
    tags = [
        spec.architecture,
        plain_name(schema.name) or "Own dataset",
        "Remote Sensing",
        task,
        "Multispectral",
    ]
    return "\n".join(
        [
            "---",
            "tags:",
            *(f"- {tag}" for tag in tags),
            f"library_name: {_library(spec)}",
            "license: mit",
            "---",
            "",
            f"# {spec.architecture} on {schema.name}, {' '.join(spec.bands)}",
            "",
            f"Predicts {subject}. "
            f"Input: float32 (batch, {len(spec.bands)}, {spec.image_px}, {spec.image_px}), "
            "bands in the order of the title, "
            f"resampled to {schema.patch_m / spec.image_px:g} m (nearest), less the mean and divided by the deviation "
            f"of the train split. Output: {len(spec.classes)} logits, classes in {order}.",
            "",
            f"## Result on {metrics['subset']}",
            "",
            f"{metrics['num_patches']:,} patches; macro is the mean over the {metrics['num_classes']} classes "
            f"that occur in them. The weights are those of epoch {metrics['best_epoch']}, the best on "
            f"validation ({metrics['validation_score']:.4f}). The {metrics['subset']} patches chose nothing"
            + ("." if metrics["subset"] == "test" else " but these weights: there was no test patch."),
            "",
            *rows,
            "",
            "## Use",
            "",
            "```python",
            "from reben_cloud.training.models import load_pretrained",
            "",
            'model, spec = load_pretrained("this/folder")',
            "```",
            "",
            "## Training",
            "",
            *_delivery(metrics, config),
            "```json",
            config.to_json(),
            "```",
            "",
            *(_PUBLISHED_MODELS if schema.name == REBEN.name and spec.task == "labels" else ()),
        ]
    )


def _library(spec: ModelSpec) -> str:
    """What the model is made with, as the hub calls it."""
    if is_smp(spec.architecture):
        return "segmentation-models-pytorch"
    return "configilm" if spec.task == "labels" else "timm"


def _more_libraries(spec: ModelSpec) -> Json:
    return {"segmentation_models_pytorch": smp_version()} if is_smp(spec.architecture) else {}


def _delivery(metrics: TrainResult, config: TrainConfig) -> list[str]:
    """What was trained on, in words."""
    epoch = metrics["best_epoch"]
    one = metrics.get("delivered", {}).get(str(epoch))
    if one is None:
        return []
    balanced = f" --balanced-power {config.balanced:g}" if config.balanced else ""
    return [
        f"Epoch {epoch} delivered {one['samples']:,} samples with the digest `{one['digest']}`. With the search "
        f"options of the train subset, `reben-cloud verify-epoch ROOT --epoch {epoch} --seed {config.seed} "
        f"--lanes {config.lanes} --samples {one['samples']}{balanced} --digest {one['digest']}` compares it with what "
        f"that epoch should have; `{ITEM}` has those of all epochs.",
        "",
    ]


DIFFERENCES = (
    "An epoch here has whole batches alone, other patches being left out each time (464 steps of 512 patches of the "
    "train split); theirs has a last, smaller one (465).",
    "The warm-up is 1,000 steps in both, but here never more than a tenth of all steps; theirs is 100 steps or none in "
    "very short runs.",
    "Macro means here are over the classes that occur in the patches measured; theirs are over all 19. On the whole "
    "test split that is the same.",
    "Order, flips and dropout follow from the seed, the epoch and the patch, so no run repeats one of theirs.",
)
"""What the recipes do otherwise than the training scripts of the published models."""

_PUBLISHED_MODELS = (
    "## Beside the published models",
    "",
    "The models published with BigEarthNet v2.0 were, like this one, stopped and chosen on validation (average "
    "precision, macro). Of several seeds, the one that was uploaded is the best on the recommended test split, so "
    "their results are a little too good; this is one seed. What else differs from their scripts:",
    "",
    *(f"- {one}" for one in DIFFERENCES),
    "",
)


def plain_name(name: str) -> str:
    """A dataset's name with ASCII letters, digits, spaces and ``_.-`` alone, as MLM wants it and YAML takes it."""
    return re.sub(r"\s+", " ", re.sub(r"[^A-Za-z0-9_.\s-]", "", name)).strip(" _.-")


def model_item(
    folder: Path, spec: ModelSpec, metrics: TrainResult, config: TrainConfig, schema: Schema
) -> Json:
    """The STAC Item of a model, with the Machine Learning Model extension."""
    weights = folder / "model.safetensors"
    with safe_open(weights, framework="pt") as opened:
        sizes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118 - no mapping
    num_parameters = sum(int(torch.Size(size).numel()) for size in sizes)
    tasks = ["scene-classification"] if spec.task == "labels" else ["semantic-segmentation"]
    parts = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": f"{spec.architecture}-{spec.task}-{'-'.join(spec.bands)}",
        **_place(schema),
        "properties": {
            "datetime": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "description": f"{spec.architecture} trained on {schema.name}",
            "bands": [_band(name, schema) for name in spec.bands],
            "mlm:name": f"{spec.architecture} on {plain_name(schema.name)}".strip(),
            "mlm:architecture": spec.architecture,
            "mlm:tasks": tasks,
            "mlm:framework": "PyTorch",
            "mlm:framework_version": torch.__version__.split("+")[0],
            "mlm:total_parameters": num_parameters,
            "mlm:memory_size": weights.stat().st_size,
            "mlm:pretrained": bool(config.weights),
            "mlm:batch_size_suggestion": config.batch_size,
            "mlm:hyperparameters": {**parts, "timm": timm.__version__, **_more_libraries(spec)},
            "mlm:input": [_input(spec, schema)],
            "mlm:output": [_output(spec, tasks)],
            f"{layout.PREFIX}metrics": {
                "subset": metrics["subset"],
                "num_classes": metrics["num_classes"],
                "macro": metrics["macro"],
                "validation_score": metrics["validation_score"],
            },
            f"{layout.PREFIX}delivered": metrics.get("delivered", {}),
        },
        "links": [],
        "assets": {
            "weights": {
                "href": "./model.safetensors",
                "type": "application/octet-stream",
                "title": "Weights",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "safetensors.torch.save_file",
                "bands": [{"name": name} for name in spec.bands],  # the core wants them here, MLM above
            },
            "card": {"href": "./README.md", "type": "text/markdown", "roles": ["metadata"]},
        },
    }


def _place(schema: Schema) -> Json:
    """Where a model may be used: where it was trained, as far as that is known."""
    if schema.name != REBEN.name:
        return {"geometry": None}
    west, south, east, north = DATASET_BBOX
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": list(DATASET_BBOX)}


def _band(name: str, schema: Schema) -> Json:
    place = schema.bands[name]
    of = schema.modality(place.modality)
    return {"name": name, "description": f"{of.title or of.name}, {place.tensor.pixel_m:g} m"}


def _input(spec: ModelSpec, schema: Schema) -> Json:
    statistics = statistics_of(spec.bands, schema=schema, given=spec.statistics)
    units = {name: schema.bands[name].tensor.units or "no unit" for name in spec.bands}
    return {
        "name": "patch",
        "bands": list(spec.bands),
        "input": {
            "shape": [-1, len(spec.bands), spec.image_px, spec.image_px],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [{"type": "z-score", "mean": one.mean, "stddev": one.std} for one in statistics],
        "resize_type": "interpolation-nearest",
        "description": "Units before scaling: "
        + ", ".join(
            f"{unit} ({' '.join(n for n in units if units[n] == unit)})"
            for unit in dict.fromkeys(units.values())
        ),
    }


def _output(spec: ModelSpec, tasks: list[str]) -> Json:
    pixels = [] if spec.task == "labels" else [spec.image_px, spec.image_px]
    return {
        "name": "logits",
        "tasks": tasks,
        "result": {
            "shape": [-1, len(spec.classes), *pixels],
            "dim_order": ["batch", "class", *(["height", "width"] if pixels else [])],
            "data_type": "float32",
        },
        "classification:classes": _classes(spec.classes),
    }


def _classes(classes: Classes) -> list[Json]:
    found: list[Json] = [
        {
            "value": number,
            "name": "".join(c if c.isalnum() else "_" for c in name.lower()),
            "description": name,
        }
        for number, name in enumerate(classes.names)
    ]
    for entry, color in zip(found, classes.colors, strict=False):
        entry["color_hint"] = color.lstrip("#").upper()
    return found
