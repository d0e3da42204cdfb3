"""Models: timm classifiers, a U-Net over a timm encoder, and both kept in folders.

A classifier's folder has the layout of the published models (``BIFOLD-BigEarthNetv2-0/...`` on the
Hugging Face hub): ``config.json`` is an ILMConfiguration and the weights are named
``model.vision_encoder.<timm name>``. Those files name neither bands nor classes, so a folder written
here has ``reben_cloud.json`` as well. Training and its data are not this module's business.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reben_cloud.bigearthnet.bands import BAND_SETS, BAND_SETS_V011, BANDS, PATCH_M
from reben_cloud.bigearthnet.labels import CLASSES
from reben_cloud.errors import NotFoundError, missing_extra
from reben_cloud.files.paths import local_path

try:
    import torch

    from reben_cloud.training.torchvision_ops import load_torchvision

    load_torchvision()
    import timm
    from safetensors.torch import load_file, save_file
    from torch import Tensor, nn
    from torch.nn import functional
except (ImportError, RuntimeError) as error:  # pragma: no cover - tested in a clean environment
    raise missing_extra("timm", "train", error) from error

IMAGE_PX = PATCH_M // 10
"""Height and width of a model's input: every band at 10 m."""

ARCHITECTURES = (
    "resnet50",
    "resnet101",
    "convmixer_768_32",
    "convnextv2_base",
    "mixer_b16_224",
    "mobilevit_s",
    "vit_base_patch8_224",
)
"""The seven published architectures, as timm names them."""

Task = Literal["labels", "map"]

_PREFIX = "model.vision_encoder."
_PUBLISHED_BANDS = {"s1": "S1", "s2": "10m_20m", "all": "S1_10m_20m"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """What must be known to build a model and to feed it.

    Raises:
        ValueError: If a band is unknown.
    """

    architecture: str
    """Name of a timm model."""
    bands: tuple[str, ...]
    """Bands in the order of the input's channels."""
    task: Task = "labels"
    """19 logits a patch, or 19 logits a pixel."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    drop_path_rate: float = 0.0
    """Stochastic depth."""

    def __post_init__(self) -> None:
        unknown = [band for band in self.bands if band not in BANDS]
        if unknown:
            raise ValueError(f"bands: {unknown[0]!r} is none of {', '.join(BANDS)}")

    @property
    def modalities(self) -> tuple[str, ...]:
        """What of a patch the model looks at: of ``s2``, ``s1``."""
        sensors = {BANDS[band].sensor for band in self.bands}
        return tuple(name for name in ("s2", "s1") if name in sensors)


def create_model(spec: ModelSpec) -> nn.Module:
    """A freshly initialised model.

    It takes float32 (batch, len(bands), 120, 120), normalised, and gives logits in alphabetical class
    order: (batch, 19) for labels, (batch, 19, 120, 120) for maps.

    Raises:
        ValueError: If timm has no such model.
    """
    options = {
        "in_chans": len(spec.bands),
        "drop_rate": spec.drop_rate,
        "drop_path_rate": spec.drop_path_rate,
    }
    if spec.task == "map":
        return UNet(_create(spec.architecture, {**options, "features_only": True}), num_classes=len(CLASSES))
    return _create(spec.architecture, {**options, "num_classes": len(CLASSES), "img_size": IMAGE_PX})


def _create(architecture: str, options: dict[str, Any]) -> nn.Module:
    """A timm model with those of the options that it knows; ResNets take no ``img_size``, say."""
    if not timm.is_model(architecture):
        near = ", ".join(timm.list_models(f"*{architecture.split('_')[0]}*")[:5])
        raise ValueError(
            f"architecture: timm has no model {architecture!r}" + (f"; it has {near}" if near else "")
        )
    while True:
        try:
            model = timm.create_model(architecture, pretrained=False, **options)
        except TypeError as error:
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if refused is None or refused[1] not in options:
                raise
            options = {name: value for name, value in options.items() if name != refused[1]}
        else:
            assert isinstance(model, nn.Module)
            return model


class UNet(nn.Module):
    """A decoder that climbs an encoder's feature maps from the coarsest to the finest, then to the input's size."""

    def __init__(self, encoder: nn.Module, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        widths: list[int] = encoder.feature_info.channels()  # type: ignore[union-attr, operator]
        decoded = [max(width // 2, 16) for width in widths[:-1]]
        inputs = [*decoded[1:], widths[-1]]
        self.steps = nn.ModuleList(
            _convolutions(below + skip, out)
            for below, skip, out in zip(inputs, widths, decoded, strict=False)
        )
        self.head = nn.Conv2d(decoded[0], num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every pixel.

        Args:
            image: float32 (batch, band, y, x).

        Returns:
            float32 (batch, num_classes, y, x).
        """
        *skips, features = self.encoder(image)
        for step, skip in zip(reversed(self.steps), reversed(skips), strict=True):
            # To the skip's size, not twice one's own: 120 px give 60, 30, 15, 8, 4.
            features = functional.interpolate(features, size=skip.shape[-2:], mode="nearest")
            features = step(torch.cat([features, skip], dim=1))
        logits: Tensor = self.head(features)
        return functional.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


def _convolutions(width_in: int, width_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (width_in, width_out):
        layers += [
            nn.Conv2d(width, width_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(width_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def save_model(folder: str | os.PathLike[str], model: nn.Module, spec: ModelSpec) -> None:
    """Write a model's folder: ``config.json``, ``model.safetensors``, ``reben_cloud.json``.

    A classifier's folder can be read by `load_pretrained` and by the classes the published models
    were made with; `modelcard.write_card` adds what people and catalogs read.
    """
    folder = local_path(folder, "the folder of a model")
    folder.mkdir(parents=True, exist_ok=True)
    prefix = _PREFIX if spec.task == "labels" else ""
    weights = {
        prefix + name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors")
    facts = {**dataclasses.asdict(spec), "classes": sorted(CLASSES), "image_px": IMAGE_PX, "version": 1}
    (folder / "reben_cloud.json").write_text(json.dumps(facts, indent=2) + "\n")
    if spec.task == "labels":
        (folder / "config.json").write_text(json.dumps(ilm_configuration(spec), indent=2) + "\n")


def ilm_configuration(spec: ModelSpec) -> dict[str, Any]:
    """The fields of ConfigILM 0.7's ``ILMConfiguration``; the language half is unused and at its defaults."""
    return {
        "timm_model_name": spec.architecture,
        "channels": len(spec.bands),
        "classes": len(CLASSES),
        "class_names": [str(number) for number in range(len(CLASSES))],
        "image_size": IMAGE_PX,
        "network_type": 0,
        "drop_rate": spec.drop_rate,
        "drop_path_rate": spec.drop_path_rate,
        "load_pretrained_timm_if_available": False,
        "hf_model_name": None,
        "load_pretrained_hf_if_available": True,
        "max_sequence_length": 32,
        "use_pooler_output": True,
        "visual_features_out": 512,
        "fusion_in": 512,
        "fusion_out": 512,
        "fusion_hidden": 256,
        "v_dropout_rate": 0.25,
        "t_dropout_rate": 0.25,
        "fusion_dropout_rate": 0.25,
        "_fusion_method": "torch.mul",
        "_fusion_activation": "nn.Tanh()",
        "custom_fusion_method": None,
        "custom_fusion_activation": None,
    }


def load_pretrained(
    source: str | os.PathLike[str], *, bands: tuple[str, ...] | None = None
) -> tuple[nn.Module, ModelSpec]:
    """Read a model into bare timm: a folder, or a published model by its name on the Hugging Face hub.

    Args:
        source: A folder that `save_model` or the original class wrote, or a name such as
            ``BIFOLD-BigEarthNetv2-0/resnet50-s2-v0.2.0`` (downloaded once, then cached).
        bands: Order of the input's channels; by default what the folder or the name tells. The two
            generations differ: v0.1.1 has VH before VV and B8A last (`bands.BAND_SETS_V011`).

    Returns:
        The model in evaluation mode, and its facts.

    Raises:
        NotFoundError: If files are missing.
        ValueError: If the bands are not known, or the weights do not fit the configuration.
    """
    folder = local_path(source, "the folder of a model")
    if not folder.is_dir():
        folder = _download(os.fspath(source))
    spec = _read_spec(folder, os.fspath(source), bands)
    model = create_model(spec)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise NotFoundError(f"{folder} has no model.safetensors, so no model is there")
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(path).items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit {spec.architecture}: {error}") from error
    return model.eval(), spec


def _download(name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise NotFoundError(f"{name}: no such folder, and not a name on the Hugging Face hub (owner/model)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "model.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise NotFoundError(
            f"{name} can be had neither from the Hugging Face hub nor from its cache: {error}"
        ) from error


def _read_spec(folder: Path, name: str, bands: tuple[str, ...] | None) -> ModelSpec:
    own = folder / "reben_cloud.json"
    if own.is_file():
        facts = json.loads(own.read_text())
        fields = {field.name: facts[field.name] for field in dataclasses.fields(ModelSpec)}
        return ModelSpec(**{**fields, "bands": bands or tuple(facts["bands"])})
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise NotFoundError(f"{folder} has neither reben_cloud.json nor config.json, so no model is there")
    config = json.loads(config_path.read_text())
    config = config.get("config", config)
    spec = ModelSpec(
        architecture=config["timm_model_name"],
        bands=bands or published_bands(name),
        drop_rate=config.get("drop_rate") or 0.0,
        drop_path_rate=config.get("drop_path_rate") or 0.0,
    )
    if len(spec.bands) != config["channels"]:
        raise ValueError(
            f"{name}: the model takes {config['channels']} channels, and {len(spec.bands)} bands are named"
        )
    return spec


def published_bands(name: str) -> tuple[str, ...]:
    """The bands of a published model, from its name ``<architecture>-<s1|s2|all>-v<version>``.

    Raises:
        ValueError: If the name does not say.
    """
    found = re.search(r"-(s1|s2|all)-v(\d+)\.(\d+)\.\d+/?$", name)
    if found is None:
        raise ValueError(
            f"{name}: neither the files nor the name (<architecture>-<s1|s2|all>-v<version>) tell the order of "
            "the bands; give it: bands=reben_cloud.bigearthnet.bands.BAND_SETS[...]"
        )
    sets = BAND_SETS_V011 if (int(found[2]), int(found[3])) < (0, 2) else BAND_SETS
    return sets[_PUBLISHED_BANDS[found[1]]]
