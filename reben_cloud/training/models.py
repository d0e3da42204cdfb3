"""Models: timm classifiers and the U-Net, made from their facts and kept in folders.

A classifier's folder has the layout of the published models (``BIFOLD-BigEarthNetv2-0/...`` on the
Hugging Face hub): ``config.json`` is an ILMConfiguration and the weights are named
``model.vision_encoder.<timm name>``. Those files name neither bands nor classes, so a folder written
here has ``reben_cloud.json`` as well: bands, statistics, classes; and ``SHA256SUMS``, which is compared on reading.
Training and its data are not this module's business.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reben_cloud.bigearthnet.bands import BAND_SETS, BAND_SETS_V011, PATCH_M
from reben_cloud.bigearthnet.inputs import PUBLISHED, BandStatistics
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import ChecksumError, NotFoundError, RebenError, missing_extra
from reben_cloud.files.paths import local_path
from reben_cloud.files.whole import replacing, write_whole
from reben_cloud.schema import Classes
from reben_cloud.training.checksums import (
    SUMS,
    check_files,
    read_json,
    vouch_for,
    vouch_for_another,
)

try:
    from reben_cloud.training.torchvision_ops import load_torchvision

    load_torchvision()
    import timm
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file
    from torch import Tensor, nn

    from reben_cloud.training.encoders import is_entry, make_encoded
    from reben_cloud.training.map_transformer import MapTransformer
    from reben_cloud.training.smp import is_smp, make_smp
    from reben_cloud.training.unet import UNet
except (ImportError, RuntimeError) as error:  # pragma: no cover - tested in a clean environment
    raise missing_extra("timm", "train", error) from error

WEIGHTS = "model.safetensors"
FACTS = "reben_cloud.json"
CONFIG = "config.json"

FACTS_VERSION = 2
"""Version of ``reben_cloud.json``; 1 had the names of the classes alone, and no statistics."""

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
Decoder = Literal["unet", "transformer"]

_PREFIX = "model.vision_encoder."
_WRAPPERS = (_PREFIX, "module.", "model.", "_orig_mod.")
"""What names of tensors begin with in the models published, of several processes, of Lightning, and compiled."""

_PUBLISHED_BANDS = {"s1": "S1", "s2": "10m_20m", "all": "S1_10m_20m"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """What must be known to build a model and to feed it.

    Raises:
        ValueError: If a band is neither reBEN's nor has statistics.
    """

    architecture: str
    """Name of a timm model, ``smp:DECODER:ENCODER`` (`smp.make_smp`) or ``package.module:function``
    (`encoders.MakesEncoder`)."""
    bands: tuple[str, ...]
    """Bands in the order of the input's channels."""
    task: Task = "labels"
    """A logit per class and patch, or per class and pixel."""
    decoder: Decoder = "unet"
    """What stands over the encoder of a map."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    drop_path_rate: float = 0.0
    """Stochastic depth."""
    classes: Classes = REBEN.classes
    """What the logits are of, in order."""
    image_px: int = PATCH_M // 10
    """Height and width of the input, pixels."""
    statistics: Mapping[str, BandStatistics] = field(default_factory=dict)
    """What normalises a band, where it is not what was published of reBEN's."""
    thresholds: tuple[float, ...] = ()
    """Probability above which a class is said to be there, of each class, as validation chose it; empty: one half."""

    def __post_init__(self) -> None:
        unknown = [band for band in self.bands if band not in PUBLISHED and band not in self.statistics]
        if unknown:
            raise ValueError(
                f"bands: {unknown[0]!r} is none of {', '.join(PUBLISHED)}, so its statistics must be given"
            )
        if self.thresholds and (
            len(self.thresholds) != len(self.classes) or not all(0 <= one <= 1 for one in self.thresholds)
        ):
            raise ValueError(
                f"thresholds must be {len(self.classes)} numbers in [0, 1], got {self.thresholds}"
            )

    @property
    def decision_thresholds(self) -> tuple[float, ...]:
        """The threshold of each class: `thresholds`, or one half."""
        return self.thresholds or (0.5,) * len(self.classes)


def create_model(spec: ModelSpec) -> nn.Module:
    """A freshly initialised model.

    It takes float32 (batch, len(bands), image_px, image_px), normalised, and gives logits in the order of
    the classes: (batch, num_classes) for labels, (batch, num_classes, image_px, image_px) for maps.

    Raises:
        MissingExtraError: If segmentation_models_pytorch is needed and not installed.
        ValueError: If there is no such model, or an entry point makes none.
    """
    model = _made(spec)
    if is_entry(spec.architecture):
        return model  # tried where it was made
    # An architecture may only work with images of some sizes, which shows when it is asked.
    was_training = model.training
    try:
        with torch.no_grad():
            found = model.eval()(torch.zeros(1, len(spec.bands), spec.image_px, spec.image_px))
    except _MAKING as error:
        raise ValueError(
            f"architecture: {spec.architecture} does not take images of {spec.image_px} x {spec.image_px} pixels "
            f"({spec.task}): {_in_a_line(error)}"
        ) from error
    model.train(was_training)
    pixels = (spec.image_px, spec.image_px) if spec.task == "map" else ()
    if not isinstance(found, Tensor) or found.shape != (1, len(spec.classes), *pixels):
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"architecture: {spec.architecture} gives {what} for an image, which are no logits")
    return model


_MAKING = (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, LookupError, ArithmeticError)
"""What libraries of models raise where they cannot make or use one."""


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _made(spec: ModelSpec) -> nn.Module:
    if is_smp(spec.architecture):
        if spec.task != "map" or spec.decoder != "unet":
            what = "the task labels" if spec.task != "map" else f"decoder = {spec.decoder!r}"
            raise ValueError(
                f"architecture: {spec.architecture} makes maps (task = 'map') with a decoder of its own, not {what}"
            )
        return make_smp(spec.architecture, in_chans=len(spec.bands), num_classes=len(spec.classes))
    if is_entry(spec.architecture):
        if spec.task == "map":
            raise ValueError(
                f"architecture: {spec.architecture} gives features of a whole patch; maps need a timm encoder"
            )
        return make_encoded(
            spec.architecture,
            spec.bands,
            image_px=spec.image_px,
            num_classes=len(spec.classes),
            drop_rate=spec.drop_rate,
        )
    options = {
        "in_chans": len(spec.bands),
        "drop_rate": spec.drop_rate,
        "drop_path_rate": spec.drop_path_rate,
        "img_size": spec.image_px,
    }
    if spec.task == "map":
        encoder = _create(spec.architecture, {**options, "features_only": True})
        over = MapTransformer if spec.decoder == "transformer" else UNet
        return over(encoder, num_classes=len(spec.classes))
    return _create(spec.architecture, {**options, "num_classes": len(spec.classes)})


_MAY_LACK = {"drop_rate", "drop_path_rate", "img_size"}


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
        except _MAKING as error:
            refused = {name for name in _MAY_LACK & options.keys() if f"'{name}'" in str(error)}
            if not isinstance(error, TypeError) or "unexpected keyword" not in str(error) or not refused:
                kind = "feature maps" if "features_only" in options else "a classifier"
                raise ValueError(
                    f"architecture: timm cannot make {kind} of {architecture}: {_in_a_line(error)}"
                ) from error
            options = {name: value for name, value in options.items() if name not in refused}
        else:
            assert isinstance(model, nn.Module)
            return model


def save_model(folder: str | os.PathLike[str], model: nn.Module, spec: ModelSpec) -> None:
    """Write a model's folder: ``config.json``, ``model.safetensors``, ``reben_cloud.json``, ``SHA256SUMS``.

    A classifier's folder can be read by `load_pretrained` and by the classes the published models
    were made with; `modelcard.write_card` adds what people and catalogs read.
    """
    folder = local_path(folder, "the folder of a model")
    folder.mkdir(parents=True, exist_ok=True)
    prefix = _PREFIX if spec.task == "labels" else ""
    weights = {
        prefix + name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()
    }
    with replacing(folder / WEIGHTS) as new:
        save_file(weights, new)
    _write_facts(folder, spec)
    # The classes that the published models were made with know timm's classifiers alone.
    has_config = spec.task == "labels" and not is_entry(spec.architecture)
    if has_config:
        write_json(folder / CONFIG, ilm_configuration(spec))
    vouch_for(folder, [WEIGHTS, FACTS, *([CONFIG] if has_config else [])])


def _write_facts(folder: Path, spec: ModelSpec) -> None:
    write_json(folder / FACTS, {**dataclasses.asdict(spec), "version": FACTS_VERSION})


def check_owned(folder: Path) -> None:
    """Refuse a model whose facts are not ours to write.

    Raises:
        NotFoundError: If there is no such folder.
        ValueError: If it was not written by `save_model`.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder of a model")
    if not (folder / FACTS).is_file():
        raise ValueError(
            f"{folder} has no {FACTS}, so nothing can be kept in it: load it and write it with save_model first"
        )


def save_facts(folder: Path, spec: ModelSpec) -> None:
    """Write a model's facts again, such as thresholds that were chosen since; its weights stay as they are."""
    _write_facts(folder, spec)
    vouch_for_another(folder, FACTS)


def weights_digest(model: nn.Module) -> str:
    """The sha256 of a model's weights: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Write a document that people read too, as a whole or not at all."""
    write_whole(path, (json.dumps(document, indent=2) + "\n").encode())


def ilm_configuration(spec: ModelSpec) -> dict[str, object]:
    """The fields of ConfigILM 0.7's ``ILMConfiguration``; the language half is unused and at its defaults."""
    return {
        "timm_model_name": spec.architecture,
        "channels": len(spec.bands),
        "classes": len(spec.classes),
        "class_names": [str(number) for number in range(len(spec.classes))],
        "image_size": spec.image_px,
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
        bands: Order of the input's channels, where the folder does not tell; by default what it or the name tells.
            The two generations differ: v0.1.1 has VH before VV and B8A last (`bands.BAND_SETS_V011`).

    Returns:
        The model in evaluation mode, and its facts.

    Raises:
        ChecksumError: If a file is not the one that was written.
        NotFoundError: If files are missing.
        ValueError: If the bands are not known or not those that the folder tells, or the weights do not fit the
            configuration.
    """
    folder = local_path(source, "the folder of a model")
    if not folder.is_dir():
        folder = _download(os.fspath(source))
    facts = folder / FACTS
    check_files(folder, [WEIGHTS, *([FACTS] if facts.is_file() else [])])
    spec = _read_spec(folder, os.fspath(source), bands)
    model = create_model(spec)
    path = folder / WEIGHTS
    if not path.is_file():
        raise NotFoundError(f"{folder} has no {WEIGHTS}, so no model is there")
    try:
        weights = {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ChecksumError(f"{path} is damaged, or not of safetensors: {error}") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit {spec.architecture}: {error}") from error
    return model.eval(), spec


def strip_prefix(name: str) -> str:
    """The name that timm has for a tensor of a published model, of one of ours, or of a wrapped one."""
    while (wrapper := next((one for one in _WRAPPERS if name.startswith(one)), None)) is not None:
        name = name.removeprefix(wrapper)
    return name


def _download(name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise NotFoundError(f"{name}: no such folder, and not a name on the Hugging Face hub (owner/model)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", WEIGHTS, SUMS]))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise NotFoundError(
            f"{name} can be had neither from the Hugging Face hub nor from its cache: {error}"
        ) from error


def _read_spec(folder: Path, name: str, bands: tuple[str, ...] | None) -> ModelSpec:
    own = folder / FACTS
    if own.is_file():
        return _spec_of_facts(read_json(own), own, bands)
    inside = next((path.parent for path in sorted(folder.glob(f"*/{FACTS}"))), None)
    if inside is not None:  # a run's folder, say
        raise NotFoundError(f"{folder} is not the folder of a model itself, but has one in it: {inside}")
    config_path = folder / CONFIG
    if not config_path.is_file():
        raise NotFoundError(f"{folder} has neither {FACTS} nor {CONFIG}, so no model is there")
    config = read_json(config_path)
    config = config.get("config", config)
    lacking = [key for key in ("timm_model_name", "channels") if key not in config]
    if lacking:
        raise ValueError(
            f"{config_path} has no {lacking[0]}, so it is not of a model of reBEN's; to begin with the weights of "
            "another one, give a file of them, or timm:TAG"
        )
    spec = ModelSpec(
        architecture=config["timm_model_name"],
        bands=bands or published_bands(name),
        image_px=config.get("image_size") or PATCH_M // 10,
        drop_rate=config.get("drop_rate") or 0.0,
        drop_path_rate=config.get("drop_path_rate") or 0.0,
    )
    if len(spec.bands) != config["channels"]:
        raise ValueError(
            f"{name}: the model takes {config['channels']} channels, and {len(spec.bands)} bands are named"
        )
    return spec


def _spec_of_facts(facts: dict[str, Any], path: Path, bands: tuple[str, ...] | None) -> ModelSpec:
    if facts["version"] > FACTS_VERSION:
        raise RebenError(
            f"{path} is of version {facts['version']}, this release reads up to {FACTS_VERSION}: update it"
        )
    if facts["version"] == 1:
        # Its classes could only be reBEN's.
        facts = {**facts, "classes": dataclasses.asdict(REBEN.classes), "statistics": {}}
    if bands is not None and bands != tuple(facts["bands"]):
        raise ValueError(
            f"{path}: the model takes the bands {','.join(facts['bands'])} in this order, not {','.join(bands)}; leave "
            "bands out, which are for models whose files do not tell"
        )
    fields = {one.name: facts[one.name] for one in dataclasses.fields(ModelSpec) if one.name in facts}
    return ModelSpec(
        **{
            **fields,
            "bands": tuple(facts["bands"]),
            "classes": Classes(**facts["classes"]),
            "thresholds": tuple(facts.get("thresholds", ())),
            "statistics": {name: BandStatistics(**one) for name, one in facts["statistics"].items()},
        }
    )


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
