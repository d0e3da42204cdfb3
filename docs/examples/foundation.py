"""Foundation models as encoders: DOFA and CROMA through torchgeo; TerraMind, Prithvi and Clay through terratorch.

Put the folder of this file into PYTHONPATH, and name a function in a recipe: ``architecture = "foundation:croma"``.
With `PRETRAINED` they begin with the published weights, which their packages download; otherwise at random.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from reben_cloud.training.encoders import takes_bands

PRETRAINED = False

OPTICAL = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
RADAR = ("VV", "VH")
MICROMETRES = dict(
    zip(OPTICAL, (0.443, 0.49, 0.56, 0.665, 0.705, 0.74, 0.783, 0.842, 0.865, 0.945, 1.61, 2.19), strict=True)
)
HLS = {
    "B02": "BLUE", "B03": "GREEN", "B04": "RED", "B8A": "NIR_NARROW", "B11": "SWIR_1", "B12": "SWIR_2",
}  # fmt: skip


class Grouped(nn.Module):
    """Gives a model the channels of each of its sensors, at its own size, and makes one vector of what it says."""

    def __init__(self, model: nn.Module, groups: dict[str, list[int]], image_px: int) -> None:
        super().__init__()
        self.model = model
        self.groups, self.image_px = groups, image_px

    def forward(self, image: Tensor) -> Tensor:
        """Features of each image."""
        if image.shape[-1] != self.image_px:
            size = (self.image_px, self.image_px)
            image = interpolate(image, size=size, mode="bilinear", align_corners=False)
        return self.features({name: image[:, channels] for name, channels in self.groups.items()})

    def features(self, given: dict[str, Tensor]) -> Tensor:
        """What the model makes of its sensors."""
        raise NotImplementedError


def positions(bands: Sequence[str], wanted: Sequence[str], model: str) -> list[int]:
    """Where the bands that a model takes are among those given; all or none of a sensor."""
    if missing := [one for one in wanted if one not in bands]:
        raise ValueError(f"{model} takes {', '.join(wanted)}; the recipe's bands lack {', '.join(missing)}")
    return [bands.index(one) for one in wanted]


def sensors(bands: Sequence[str], model: str, optical: str, radar: str) -> dict[str, list[int]]:
    """The sensors that some of the bands are of."""
    groups = {}
    for name, wanted in ((optical, OPTICAL), (radar, RADAR)):
        if any(one in bands for one in wanted):
            groups[name] = positions(bands, wanted, model)
    return groups


class Dofa(Grouped):
    def features(self, given: dict[str, Tensor]) -> Tensor:
        (image,) = given.values()
        return self.model.forward_features(image, self.wavelengths)


@takes_bands
def dofa(bands: Sequence[str], *, image_px: int) -> nn.Module:
    """Any bands, optical or radar, in any order: DOFA is told their wavelengths."""
    from torchgeo.models import DOFABase16_Weights, dofa_base_patch16_224

    model = dofa_base_patch16_224(DOFABase16_Weights.DOFA_MAE if PRETRAINED else None)
    found = Dofa(model, {"image": list(range(len(bands)))}, 224)
    found.wavelengths = [
        MICROMETRES.get(band, 5.405) for band in bands
    ]  # radar by its frequency, as DOFA has it
    return found


class Croma(Grouped):
    def features(self, given: dict[str, Tensor]) -> Tensor:
        found = self.model(**given)
        name = "joint_GAP" if len(given) == 2 else "optical_GAP" if "x_optical" in given else "sar_GAP"
        return found[name]


@takes_bands
def croma(bands: Sequence[str], *, image_px: int) -> nn.Module:
    """All twelve optical bands, both of radar, or all of these."""
    from torchgeo.models import CROMABase_Weights, croma_base

    groups = sensors(bands, "CROMA", "x_optical", "x_sar")
    names = {"x_sar": "sar", "x_optical": "optical"}
    given = [name for key, name in names.items() if key in groups]
    weights = CROMABase_Weights.CROMA_VIT if PRETRAINED else None
    return Croma(croma_base(weights, modalities=given, image_size=120), groups, 120)


class Tokens(Grouped):
    def features(self, given: dict[str, Tensor]) -> Tensor:
        # Of one sensor the image itself; what comes last is the last layer's, (batch, token, width).
        found = self.model(given if "S2L2A" in given or "S1GRD" in given else next(iter(given.values())))
        return found[-1].mean(1)


@takes_bands
def terramind(bands: Sequence[str], *, image_px: int) -> nn.Module:
    """All twelve optical bands, both of radar, or all of these."""
    groups = sensors(bands, "TerraMind", "S2L2A", "S1GRD")
    model = _terratorch(
        "terratorch_terramind_v1_base", modalities=list(groups), img_size=224, merge_method="mean"
    )
    return Tokens(model, groups, 224)


@takes_bands
def prithvi(bands: Sequence[str], *, image_px: int) -> nn.Module:
    """The six bands that Landsat and Sentinel-2 have both, of one date."""
    chosen = positions(bands, list(HLS), "Prithvi")
    model = _terratorch("terratorch_prithvi_eo_v2_300", bands=list(HLS.values()), num_frames=1, img_size=224)
    return Tokens(model, {"image": chosen}, 224)


class Clay(Grouped):
    def features(self, given: dict[str, Tensor]) -> Tensor:
        (image,) = given.values()
        waves = torch.tensor(self.wavelengths, device=image.device)
        found = self.model(image, waves=waves, gsd=10.0)
        return found[-1][:, 0]  # the class token


@takes_bands
def clay(bands: Sequence[str], *, image_px: int) -> nn.Module:
    """Any optical bands in any order: Clay is told their wavelengths."""
    chosen = positions(bands, [band for band in bands if band in MICROMETRES], "Clay")
    if len(chosen) < len(bands):
        raise ValueError("Clay takes optical bands here")
    model = _terratorch("timm_clay_v1_base", bands=list(bands), img_size=120)
    found = Clay(model, {"image": chosen}, 120)
    found.wavelengths = [MICROMETRES[band] for band in bands]
    return found


def _terratorch(name: str, **options: object) -> nn.Module:
    import terratorch  # noqa: F401 - fills the registry
    from terratorch.registry import BACKBONE_REGISTRY

    return BACKBONE_REGISTRY.build(name, pretrained=PRETRAINED, **options)
