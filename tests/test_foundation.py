"""Foundation models with random weights, where torchgeo and terratorch are installed: they become classifiers."""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from reben_cloud.bigearthnet.bands import BAND_SETS
from reben_cloud.training.models import ModelSpec, create_model
from reben_cloud.training.torchvision_ops import load_torchvision

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # those of others' packages

HLS = ("B02", "B03", "B04", "B8A", "B11", "B12")


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    sys.modules.pop("foundation", None)


@pytest.mark.parametrize(
    ("name", "package", "bands"),
    [
        pytest.param("dofa", "torchgeo", ("VH", "B04", "B8A"), id="DOFA"),
        pytest.param("croma", "torchgeo", BAND_SETS["S1_10m_20m"] + ("B01", "B09"), id="CROMA"),
        pytest.param("croma", "torchgeo", ("VV", "VH"), id="CROMA of radar"),
        pytest.param("terramind", "terratorch", ("B01", "B09", *BAND_SETS["S1_10m_20m"]), id="TerraMind"),
        pytest.param("prithvi", "terratorch", ("VV", *HLS), id="Prithvi"),
        pytest.param("clay", "terratorch", HLS, id="Clay"),
    ],
)  # fmt: skip
def test_a_foundation_model_becomes_a_classifier(name, package, bands):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install {package}")
    load_torchvision()
    torch.manual_seed(0)
    spec = ModelSpec(architecture=f"foundation:{name}", bands=tuple(bands))

    model = create_model(spec).eval()

    image = torch.randn(2, len(bands), 120, 120)
    with torch.inference_mode():
        logits, others = model(image), model(image.flip(1))
    assert logits.shape == (2, 19)
    assert logits.isfinite().all()
    assert not torch.allclose(logits, others)  # it sees which band is which


def test_bands_that_a_model_lacks_are_named():
    foundation = importlib.import_module("foundation")

    with pytest.raises(ValueError, match="CROMA takes VV, VH; the recipe's bands lack VH"):
        foundation.sensors(("VV", "VX"), "CROMA", "x_optical", "x_sar")
    with pytest.raises(ValueError, match=r"Prithvi takes B02, .* lack B8A, B11, B12"):
        foundation.prithvi(("B02", "B03", "B04"), image_px=120)
