"""What a model's folder tells people and catalogs: ``README.md`` and ``item.json`` (STAC, MLM extension)."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open

from reben_cloud.bigearthnet.bands import BANDS, STATISTICS_MEAN, STATISTICS_STD
from reben_cloud.bigearthnet.labels import CLASSES_ALPHABETICAL, CLC, representative_code
from reben_cloud.files.paths import local_path
from reben_cloud.training.config import TrainConfig
from reben_cloud.training.models import IMAGE_PX, ModelSpec

EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.5.2/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
)
"""STAC extensions of the item."""

DATASET_BBOX = (-9.0003, 36.9569, 31.5985, 68.0217)
"""West, south, east, north of BigEarthNet v2.0, degrees: where a model was trained is where it may be used."""


def write_card(
    folder: str | os.PathLike[str], spec: ModelSpec, metrics: Mapping[str, Any], config: TrainConfig
) -> None:
    """Write ``README.md`` and ``item.json`` beside a model's weights.

    Args:
        folder: Of the model, written by `models.save_model`.
        spec: Facts of the model.
        metrics: What `train.train` returns.
        config: How it was trained.
    """
    folder = local_path(folder, "the folder of a model")
    (folder / "item.json").write_text(json.dumps(model_item(folder, spec, metrics, config), indent=2) + "\n")
    (folder / "README.md").write_text(model_card(spec, metrics, config))


def model_card(spec: ModelSpec, metrics: Mapping[str, Any], config: TrainConfig) -> str:
    """The card as Markdown with a YAML head, as the Hugging Face hub reads it."""
    task = "Classification" if spec.task == "labels" else "Segmentation"
    subject = (
        "the land-cover classes of a patch" if spec.task == "labels" else "the land cover of every pixel"
    )
    names = list(metrics["macro"])
    rows = ["| | " + " | ".join(name.upper() for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for mean in ("macro", "micro"):
        if mean in metrics:
            values = [metrics[mean][name] for name in names]
            shown = " | ".join("–" if value is None else f"{value:.4f}" for value in values)
            rows.append(f"| {mean} | {shown} |")
    tags = [spec.architecture, "BigEarthNet v2.0", "Remote Sensing", task, "Multispectral"]
    return "\n".join(
        [
            "---",
            "tags:",
            *(f"- {tag}" for tag in tags),
            f"library_name: {'configilm' if spec.task == 'labels' else 'timm'}",
            "license: mit",
            "---",
            "",
            f"# {spec.architecture} on BigEarthNet v2.0, {' '.join(spec.bands)}",
            "",
            f"Predicts {subject}. "
            f"Input: float32 (batch, {len(spec.bands)}, {IMAGE_PX}, {IMAGE_PX}), bands in the order of the title, "
            "resampled to 10 m (nearest), less the mean and divided by the deviation of the train split. "
            f"Output: {len(CLASSES_ALPHABETICAL)} logits, classes in alphabetical order.",
            "",
            f"## Result on {metrics['subset']}",
            "",
            f"{metrics['num_patches']:,} patches; macro is the mean over the {metrics['num_classes']} classes "
            f"that occur in them. The weights are those of epoch {metrics['best_epoch']}, the best on "
            f"validation ({metrics['validation_score']:.4f}). The {metrics['subset']} patches chose nothing"
            + (
                "; the models published with the dataset were chosen by their result on test, so compare with care."
                if metrics["subset"] == "test"
                else " but these weights: there was no test patch."
            ),
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
            "```json",
            config.to_json(),
            "```",
            "",
        ]
    )


def model_item(
    folder: Path, spec: ModelSpec, metrics: Mapping[str, Any], config: TrainConfig
) -> dict[str, Any]:
    """The STAC Item of a model, with the Machine Learning Model extension."""
    west, south, east, north = DATASET_BBOX
    weights = folder / "model.safetensors"
    with safe_open(weights, framework="pt") as opened:
        sizes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118 - no mapping
    num_parameters = sum(int(torch.Size(size).numel()) for size in sizes)
    tasks = ["scene-classification"] if spec.task == "labels" else ["semantic-segmentation"]
    pixels = [] if spec.task == "labels" else [IMAGE_PX, IMAGE_PX]
    parts = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": f"{spec.architecture}-{spec.task}-{'-'.join(spec.bands)}",
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]],
        },
        "bbox": list(DATASET_BBOX),
        "properties": {
            "datetime": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "description": f"{spec.architecture} trained on BigEarthNet v2.0",
            "bands": [_band(name) for name in spec.bands],
            "mlm:name": f"{spec.architecture} on BigEarthNet v2.0",
            "mlm:architecture": spec.architecture,
            "mlm:tasks": tasks,
            "mlm:framework": "PyTorch",
            "mlm:framework_version": torch.__version__.split("+")[0],
            "mlm:total_parameters": num_parameters,
            "mlm:memory_size": weights.stat().st_size,
            "mlm:pretrained": False,
            "mlm:batch_size_suggestion": config.batch_size,
            "mlm:hyperparameters": {**parts, "timm": timm.__version__},
            "mlm:input": [
                {
                    "name": "patch",
                    "bands": list(spec.bands),
                    "input": {
                        "shape": [-1, len(spec.bands), IMAGE_PX, IMAGE_PX],
                        "dim_order": ["batch", "bands", "height", "width"],
                        "data_type": "float32",
                    },
                    "value_scaling": [
                        {"type": "z-score", "mean": STATISTICS_MEAN[band], "stddev": STATISTICS_STD[band]}
                        for band in spec.bands
                    ],
                    "resize_type": "interpolation-nearest",
                    "description": "S2: digital numbers (reflectance x 10,000, no offset); S1: decibel",
                }
            ],
            "mlm:output": [
                {
                    "name": "logits",
                    "tasks": tasks,
                    "result": {
                        "shape": [-1, len(CLASSES_ALPHABETICAL), *pixels],
                        "dim_order": ["batch", "class", *(["height", "width"] if pixels else [])],
                        "data_type": "float32",
                    },
                    "classification:classes": [
                        {
                            "value": number,
                            "name": "".join(c if c.isalnum() else "_" for c in name.lower()),
                            "description": name,
                            "color_hint": CLC[representative_code(name)].color.lstrip("#").upper(),
                        }
                        for number, name in enumerate(CLASSES_ALPHABETICAL)
                    ],
                }
            ],
            "reben:metrics": {
                "subset": metrics["subset"],
                "num_classes": metrics["num_classes"],
                "macro": metrics["macro"],
                "validation_score": metrics["validation_score"],
            },
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


def _band(name: str) -> dict[str, Any]:
    band = BANDS[name]
    return {"name": name, "description": f"Sentinel-{band.sensor[1]}, {band.resolution_m} m"}
