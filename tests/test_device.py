"""Batches on a device, one ahead: where the loader is, what a transform gives, and the GPU where there is one."""

# ruff: noqa: F811 - fixtures are imported from the tests of the raw loader

import warnings

import numpy as np
import pytest

from tests.test_stream import NUM_PATCHES, root, selection, truth  # noqa: F401

torch = pytest.importorskip("torch")

from reben_cloud.torch import ModelInput, StreamLoader, unpack  # noqa: E402
from reben_cloud.torch.device import OnDevice  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LAYOUTS = ["arrays", "records"]


@pytest.fixture
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


on_devices = pytest.mark.parametrize("device", DEVICES, indirect=True)
SMALL = {"batch_size": 16, "seed": 4, "modalities": ["s2", "s1"]}


@on_devices
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_on_a_device_are_the_batches_with_their_images(selection, device, layout):
    model_input = ModelInput("S1_10m_20m").to(device)
    loader = StreamLoader(selection, device=device, transform=model_input, layout=layout, **SMALL)

    got = list(loader)

    plain = ModelInput("S1_10m_20m")
    for batch, expected in zip(got, StreamLoader(selection, **SMALL), strict=True):
        image = batch.pop("image")
        assert image.device.type == device
        assert torch.equal(image.cpu(), plain(expected))
        there = {name: values.cpu() for name, values in unpack(batch).items()}
        assert there.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(there[name].numpy(), values.numpy(), err_msg=name)


@on_devices
def test_the_loader_is_where_its_last_batch_was_handed_out_not_where_it_reads(selection, device):
    plain = StreamLoader(selection, **SMALL)
    ahead = StreamLoader(selection, device=device, **SMALL)

    for _ in range(2):
        for one, other in zip(plain, ahead, strict=True):
            assert torch.equal(one["index"], other["index"].cpu())
            assert plain.state_dict() == ahead.state_dict()
            assert plain.epoch == ahead.epoch


@pytest.mark.parametrize("taken", [0, 1, 5, 8, 9, 10])
@pytest.mark.parametrize("then", ["again", "resumed", "resumed in another", "next epoch", "same epoch"])
def test_leaving_an_epoch_at_any_batch_is_what_it_is_without_a_device(selection, taken, then):
    def go_on(**options):
        loader = StreamLoader(selection, **options, **SMALL)
        iterator = iter(loader)
        for _ in range(taken):
            next(iterator)
        if then == "resumed":
            loader.load_state_dict(loader.state_dict())
        elif then == "resumed in another":
            state, loader = loader.state_dict(), StreamLoader(selection, **options, **SMALL)
            loader.load_state_dict(state)
        elif then == "next epoch":
            loader.set_epoch(loader.epoch + 1)
        elif then == "same epoch":
            loader.set_epoch(loader.epoch)
        found = [loader.epoch, loader.state_dict()]
        return [*found, [batch["index"].tolist() for batch in loader], loader.state_dict()]

    assert go_on(device="cpu") == go_on()


def test_a_transform_may_make_another_batch(selection):
    def halve(batch):
        return {"half": batch["s1"] / 2, "index": batch["index"]}

    loader = StreamLoader(selection, transform=halve, **SMALL)

    for batch, expected in zip(loader, StreamLoader(selection, **SMALL), strict=True):
        assert batch.keys() == {"half", "index"}
        assert torch.equal(batch["half"], expected["s1"] / 2)


def test_texts_stay_what_they_are():
    batches = [({"x": torch.ones(2), "texts": ["a", "b"]}, number) for number in range(3)]

    found = list(OnDevice(torch.device("cpu"), lambda batch: batch["x"] + 1).run(batches))

    assert [mark for _, mark in found] == [0, 1, 2]
    assert all(batch["texts"] == ["a", "b"] and batch["image"].tolist() == [2, 2] for batch, _ in found)


def test_one_batch_is_ahead_and_no_more():
    asked = []

    def batches():
        for number in range(4):
            asked.append(number)
            yield {"x": torch.zeros(1)}, number

    run = OnDevice(torch.device("cpu"), None).run(batches())

    for number in range(4):
        assert next(run)[1] == number
        assert len(asked) == min(4, number + 2)


# -- what a compiler sees -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(root):
    import reben_cloud as rc

    chosen = rc.open(root).search()
    return {kind: next(iter(StreamLoader(chosen, layout=kind, batch_size=8))) for kind in LAYOUTS}


INPUTS = {
    "plain": {},
    "flip": {"augment": "flip"},
    "resized": {"size": 128},
    "half": {"dtype": torch.bfloat16, "memory_format": torch.channels_last},
    "raw": {"normalize": None, "dtype": torch.float16},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside the compiler
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS.keys())
def test_the_model_input_compiles_to_one_graph_and_the_same_image(both, layout, options):
    module = ModelInput("ALL", **options).train()
    torch._dynamo.reset()

    explained = torch._dynamo.explain(module)(both[layout])
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    image = compiled(both[layout])

    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    torch.manual_seed(1)
    assert torch.equal(image, module(both[layout]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_other_dtypes_and_formats_are_the_float32_image_rounded(both, dtype, memory_format):
    image = ModelInput("ALL", dtype=dtype, memory_format=memory_format)(both["arrays"])

    assert image.dtype == dtype
    assert image.is_contiguous(memory_format=memory_format)
    assert torch.equal(image, ModelInput("ALL")(both["arrays"]).to(dtype))


@pytest.mark.parametrize("change", [torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double])
def test_statistics_stay_float32_whatever_the_module_is_told(both, change):
    expected = ModelInput("ALL")(both["arrays"])
    model = change(torch.nn.Sequential(ModelInput("ALL")))

    assert {values.dtype for values in model.buffers()} == {torch.float32}
    assert torch.equal(model[0](both["arrays"]), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"dtype": torch.int32}, "dtype must be one of floating point, got torch.int32", id="dtype"
        ),
        pytest.param(
            {"memory_format": torch.preserve_format},
            "must be contiguous_format or channels_last",
            id="format",
        ),
    ],
)
def test_wrong_dtypes_and_formats_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ModelInput("RGB", **arguments)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu(both):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    module = ModelInput("ALL", augment="flip", dtype=torch.bfloat16).cuda().train()
    there = {name: values.cuda() for name, values in both["records"].items()}
    module(there)

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            module(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gpu_that_is_behind_gets_every_batch_whole(selection, truth, layout):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    kept = []
    for _ in range(3):
        for batch in StreamLoader(selection, device="cuda", layout=layout, **SMALL):
            torch.cuda._sleep(20_000_000)  # cycles: about 10 ms, far more than a batch takes to come
            arrays = unpack(batch)
            kept.append((batch["index"].clone(), arrays["s2_10m"].clone(), arrays["s1"].clone()))
            del batch, arrays
    torch.cuda.synchronize()

    assert sum(len(index) for index, _, _ in kept) == 3 * NUM_PATCHES
    for index, s2, s1 in kept:
        np.testing.assert_array_equal(s2.cpu().numpy(), truth["s2_10m"][index.cpu()])
        np.testing.assert_array_equal(s1.cpu().numpy(), truth["s1"][index.cpu()])
