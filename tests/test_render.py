"""Pictures made on the device are those that an export draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import reben_cloud as rc
from reben_cloud.bigearthnet.about import FALSE_COLOR, RADAR, TRUE_COLOR
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.torch import RenderRGB, StreamLoader
from tests.roots import synthetic_root

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


@pytest.fixture(scope="module")
def selection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("render") / "root"
    synthetic_root(folder, 12)
    return rc.open(folder).selection


@pytest.mark.parametrize("percentiles", [None, (2.0, 98.0)], ids=["fixed", "percentiles"])
@pytest.mark.parametrize("render", [TRUE_COLOR, FALSE_COLOR, RADAR], ids=lambda one: one.name)
def test_pictures_of_a_batch_have_the_pixels_of_the_exported_ones(selection, render, percentiles, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    stretch = {} if percentiles is None else {"stretch": "patch", "percentiles": percentiles}
    selection.export_png(tmp_path / "png", pictures=[render.name], **stretch)
    draw = RenderRGB(render, percentiles=percentiles)

    count = 0
    for batch in StreamLoader(selection, modalities=["s2", "s1"], batch_size=5):
        pictures = draw(batch)
        assert pictures.dtype == torch.uint8
        for number, index in enumerate(batch["index"].tolist()):
            (path,) = (tmp_path / "png").rglob(f"{selection.patch_ids[index]}*.png")
            with rasterio.open(path) as file:
                np.testing.assert_array_equal(pictures[number].numpy(), file.read())
            count += 1
    assert count == len(selection)


def test_a_picture_of_no_data_is_black_and_has_no_influence_on_others():
    batch = {"s1": torch.full((2, 2, 120, 120), torch.nan)}
    batch["s1"][1] = torch.linspace(-20, -10, 14_400).view(120, 120)

    pictures = RenderRGB(RADAR, percentiles=(0, 100))(batch)

    assert pictures[0].max() == 0
    assert pictures[1, 0].min() == 0
    assert pictures[1, 0].max() == 255


def test_what_is_missing_is_named():
    with pytest.raises(
        ValueError, match=r"true-color is made of B02, B03, B04, which no array of .* it has VV, VH"
    ):
        RenderRGB(schema=REBEN.only(["s1"]))
    with pytest.raises(ValueError, match=r"rise from 0 or more to 100 at most, got \(98, 2\)"):
        RenderRGB(percentiles=(98, 2))
    with pytest.raises(ValueError, match=r"the batch has no s2_10m, .* it has s1: stream s2 too"):
        RenderRGB()({"s1": torch.zeros(1, 2, 120, 120)})
