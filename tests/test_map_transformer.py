"""The transformer decoder of maps: shapes, places, what it learns, and that its folder is read again."""

import pytest
import torch

from reben_cloud.training.depth import freeze, layers_of
from reben_cloud.training.map_transformer import WIDTH, MapTransformer, places
from reben_cloud.training.models import ModelSpec, create_model, load_pretrained, save_model
from reben_cloud.training.outputs import embed
from reben_cloud.training.start import head_names, read_weights, start_from
from reben_cloud.training.unet import UNet

SPEC = ModelSpec(architecture="resnet10t", bands=("B04", "B03", "B02"), task="map", decoder="transformer")


def test_its_folder_is_read_again(tmp_path):
    torch.manual_seed(0)
    model = create_model(SPEC).eval()
    image = torch.randn(2, 3, 120, 120)
    save_model(tmp_path, model, SPEC)

    again, spec = load_pretrained(tmp_path)

    assert (spec, type(again)) == (SPEC, MapTransformer)
    assert model(image).shape == (2, 19, 120, 120)
    torch.testing.assert_close(again(image), model(image))
    assert embed(again, image).ndim == 2
    assert list(head_names(again)) == ["head.weight", "head.bias"]
    unet = create_model(ModelSpec(architecture="resnet10t", bands=SPEC.bands, task="map"))
    assert isinstance(unet, UNet)
    encoder = sum(weights.numel() for weights in model.encoder.parameters())
    sizes = [sum(weights.numel() for weights in one.parameters()) - encoder for one in (model, unet)]
    assert sizes[0] < sizes[1] / 3


def test_every_place_sees_every_other_one():
    torch.manual_seed(0)
    model = create_model(SPEC).eval()
    image = torch.randn(1, 3, 120, 120)
    other = image.clone()
    other[..., 100:, 100:] += 3

    with torch.inference_mode():
        changed = (model(image) - model(other)).abs().amax((0, 1))

    assert changed[:8, :8].min() > 0
    assert changed[100:, 100:].mean() > changed[:20, :20].mean()


def test_places_differ_and_know_no_size():
    small, large = (places(size, size, device=torch.device("cpu")) for size in (5, 15))

    assert small.shape == (25, WIDTH)
    assert len(torch.unique(large, dim=0)) == 225
    torch.testing.assert_close(small[5 * 3 + 2], large[15 * 3 + 2])


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_encoders_of_other_reductions_fit(architecture):
    spec = ModelSpec(architecture=architecture, bands=("VV", "VH"), task="map", decoder="transformer")

    assert create_model(spec).eval()(torch.zeros(1, 2, 120, 120)).shape == (1, 19, 120, 120)


def test_it_begins_with_a_classifier_and_freezes_its_encoder(tmp_path):
    classifier = ModelSpec(architecture="resnet10t", bands=SPEC.bands)
    torch.manual_seed(0)
    save_model(tmp_path, create_model(classifier), classifier)
    model = create_model(SPEC)

    left = start_from(model, SPEC, read_weights(str(tmp_path)))
    freeze(model, "backbone")

    assert left
    assert not any(name.startswith("encoder.") for name in left)
    learning = {name.split(".")[0] for name, weights in model.named_parameters() if weights.requires_grad}
    assert learning == {"projections", "attention", "smooth", "head"}
    assert layers_of(model)[-1] == ["head.weight", "head.bias"]


@pytest.mark.slow
def test_it_learns_a_map():
    torch.manual_seed(0)
    model = create_model(SPEC)
    image = torch.randn(8, 3, 60, 60)
    truth = (torch.nn.functional.avg_pool2d(image[:, 0], 5, 1, 2) > 0).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(image), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0] / 3
