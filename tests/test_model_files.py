"""Damage to the files of a trained model and of its run is found before anything is made of them."""

import hashlib
import json
import logging
import random
import shutil
import subprocess

import pytest
import torch

import reben_cloud as rc
from reben_cloud.errors import ChecksumError, NotFoundError, RebenError
from reben_cloud.training.checkpoint import load_checkpoint
from reben_cloud.training.checksums import SUMS
from reben_cloud.training.config import load_recipe
from reben_cloud.training.models import create_model, load_pretrained, save_model
from reben_cloud.training.run import refuse_other_run
from reben_cloud.training.train import train
from tests.roots import synthetic_root

pytestmark = pytest.mark.slow

FLIPS = 60
"""Of each file."""

CPU = torch.device("cpu")

CONFIG = load_recipe(
    "resnet50", overrides=["epochs=1", "batch_size=8", "log_steps=1", "architecture=test_byobnet"]
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root") / "root"
    synthetic_root(folder, 48)
    return rc.open(folder)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(CONFIG, dataset, folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run, to damage."""
    return shutil.copytree(finished, tmp_path / "run")


def refusal(load, *arguments):
    """What an error says, nothing if there is none."""
    try:
        load(*arguments)
    except RebenError as error:
        return str(error)
    return ""


def flips(data, name, number=FLIPS):
    """Copies of `data` with a single bit changed, some at the very beginning and end, where headers are."""
    chance = random.Random(name)
    size = len(data)
    places = [chance.randrange(min(size, 2000)) for _ in range(number // 3)]
    places += [size - 1 - chance.randrange(min(size, 2000)) for _ in range(number // 3)]
    places += [0, size - 1, *(chance.randrange(size) for _ in range(number // 3))]
    for at in places:
        yield at, data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def test_every_flip_in_a_models_folder_is_refused_and_names_the_file(run):
    best = run / "best"
    names = {path.name for path in best.iterdir()}
    assert names == {"config.json", "model.safetensors", "reben_cloud.json", "item.json", "README.md", SUMS}
    load_pretrained(best)

    for name in sorted(names - {"README.md"}):
        whole = (best / name).read_bytes()
        for at, data in flips(whole, name):
            (best / name).write_bytes(data)
            said = refusal(load_pretrained, best)
            assert name in said or SUMS in said, f"{name}: byte {at}: {said}"
        (best / name).write_bytes(whole)

    (best / "README.md").write_text("Mine.")  # a card is edited by people, and nothing is made of it
    load_pretrained(best)


def test_every_flip_in_a_checkpoint_is_refused(run):
    path = run / "last.pt"
    whole = path.read_bytes()
    loaded = load_checkpoint(path, CPU)
    assert loaded.keys() == torch.load(path, weights_only=True).keys()

    for at, data in flips(whole, "last.pt"):
        path.write_bytes(data)
        assert f"{path} is damaged" in refusal(load_checkpoint, path, CPU), f"byte {at}"
    for size in (0, 1, 21, 70, len(whole) // 2, len(whole) - 64, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert f"{path} is damaged" in refusal(load_checkpoint, path, CPU), f"{size} bytes"


def test_a_checkpoint_of_an_older_release_is_read_and_that_is_said(run, caplog):
    path = run / "last.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state, path)

    with caplog.at_level(logging.WARNING):
        found = load_checkpoint(path, CPU)

    assert found["progress"] == state["progress"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: no checksum, so damage to it may go unnoticed"
    ]


def test_a_damaged_checkpoint_ends_a_run_that_goes_on(run, dataset):
    data = bytearray((run / "last.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (run / "last.pt").write_bytes(data)

    with pytest.raises(
        ChecksumError, match=r"last\.pt is damaged, its sha256 differs; .*train from the start"
    ):
        train(CONFIG, dataset, run)


@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_every_flip_in_what_a_run_is_of_is_refused_or_without_meaning(run, dataset, name):
    path = run / name
    whole = path.read_bytes()
    refused = 0

    for at, data in flips(whole, name, number=3 * FLIPS):
        path.write_bytes(data)
        said = refusal(refuse_other_run, run, CONFIG, dataset)
        assert str(run) in said or json.loads(data) == json.loads(whole), f"byte {at}: {said}"
        refused += bool(said)
    assert refused > FLIPS


def test_a_damaged_log_is_named(run, dataset):
    lines = (run / "log.csv").read_text().splitlines()
    for damaged in (["stap" + lines[0][4:], *lines[1:]], [*lines[:-1], "x" + lines[-1]]):
        (run / "log.csv").write_text("\n".join(damaged))
        with pytest.raises(ChecksumError, match=r"log\.csv is damaged .* move it away"):
            train(CONFIG, dataset, run)


def test_the_checksums_are_those_of_coreutils(run):
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=run / "best", capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"{name}: OK" for name in ("config.json", "item.json", "model.safetensors", "reben_cloud.json")
    ]


def test_a_folder_without_checksums_is_loaded_and_that_is_said_once(run, caplog):
    best = run / "best"
    (best / SUMS).unlink()

    with caplog.at_level(logging.WARNING):
        load_pretrained(best)
        load_pretrained(best)

    assert [record.getMessage() for record in caplog.records] == [
        f"{best}: no {SUMS}, so damage to its files may go unnoticed"
    ]
    for name in ("model.safetensors", "reben_cloud.json"):
        (best / name).write_bytes((best / name).read_bytes()[1:])
        with pytest.raises(ChecksumError, match=f"{name} is damaged"):
            load_pretrained(best)


def test_what_the_checksums_name_must_be_there_and_what_is_read_must_be_named(run):
    best = run / "best"
    facts = (best / "reben_cloud.json").read_bytes()
    # Without it, the order of the bands would be taken from the folder's name.
    (best / "reben_cloud.json").unlink()
    with pytest.raises(
        NotFoundError, match=rf"reben_cloud\.json is gone, and {SUMS} names it; copy the folder"
    ):
        load_pretrained(best)
    (best / "reben_cloud.json").write_bytes(facts)

    lines = (best / SUMS).read_text().splitlines(keepends=True)
    (best / SUMS).write_text("".join(line for line in lines if "model.safetensors" not in line))
    with pytest.raises(ChecksumError, match=f"{SUMS} is damaged: it does not name model.safetensors"):
        load_pretrained(best)


def test_a_model_saved_in_the_place_of_another_is_vouched_for_anew(run):
    best = run / "best"
    _, spec = load_pretrained(best)

    save_model(best, create_model(spec), spec)

    load_pretrained(best)
    expected = hashlib.sha256((best / "model.safetensors").read_bytes()).hexdigest()
    assert f"{expected}  model.safetensors\n" in (best / SUMS).read_text()
