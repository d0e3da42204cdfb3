"""Random configurations of the loader against an oracle that knows nothing of how it works.

The oracle is a plain list: which samples an epoch must have follows from the selection and its weights alone; in
which order they came is asked of one undisturbed rank, and must be the same for everybody else.
``REBEN_CAMPAIGN=1000`` runs so many configurations; by default it is 150. A failure names its number:
``REBEN_CAMPAIGN_FIRST=n REBEN_CAMPAIGN=1``.
"""

import collections
import os
import random
import tarfile

import numpy as np
import pyarrow as pa
import pytest

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.hosted.publish import index_hosted
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.root.repeats import epoch_counts, units_of
from reben_cloud.schema import TensorSpec
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from reben_cloud.stream import Delivered, RawLoader, expected_delivery, merge_states
from tests import official, webserver

NUM_PATCHES = 48
FIRST, COUNT = (int(os.environ.get(f"REBEN_CAMPAIGN{name}", n)) for name, n in (("_FIRST", 0), ("", 150)))


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Form -> an opened dataset of the same patches; with layers of arrays, of numbers and of texts where it can."""
    folder = tmp_path_factory.mktemp("campaign")
    os.environ["REBEN_CACHE"] = str(folder / "cache")
    source, table = SyntheticSource(NUM_PATCHES), official.table_of(NUM_PATCHES)
    build(make_plan(source, table, open_store(folder / "root"), options=PlacementOptions(shard_samples=8)))
    plain = rc.open(folder / "root")
    ids = plain.search().patch_ids
    rc.write_layer(
        folder / "heights",
        plain,
        name="heights",
        tensors=TensorSpec(name="height", shape=(4, 4), dtype="int16"),
        patches=((one, {"height": np.full((4, 4), n, np.int16)}) for n, one in enumerate(ids) if n % 3),
        allow_missing=NUM_PATCHES,
    )
    numbers = pa.table({"patch_id": ids, "n": np.arange(NUM_PATCHES)})
    rc.write_table(folder / "w", plain, name="w", table=numbers)
    texts = [(one, f"{n}/{row}") for n, one in enumerate(ids) for row in range(n % 4)]
    rows = pa.table({"patch_id": [r[0] for r in texts], "t": [r[1] for r in texts]})
    rc.write_table(folder / "txt", plain, name="txt", table=rows, many=True)
    plain.search().export_lmdb(folder / "BENv2.lmdb")
    bare = folder / "bare" / "BENv2.lmdb"
    plain.search().export_lmdb(bare)
    for name in ("export.json", "patches.parquet"):
        (bare / name).unlink()
    index_hosted(bare, folder / "ref", checksums=True)
    layers = [folder / name for name in ("heights", "w", "txt")]
    with webserver.serve(folder / "root") as url:
        yield {
            "local": rc.open(folder / "root", layers=layers),
            "served": rc.open(url, layers=layers),
            "cached": rc.open(url, layers=layers),
            "zarr": rc.open(folder / "root"),
            "lmdb": rc.open(folder / "BENv2.lmdb"),
            "references": rc.open(folder / "ref"),
        }
    del os.environ["REBEN_CACHE"]


class Configuration:
    """One random configuration; all that is random of it follows from its number."""

    def __init__(self, number, forms, tmp_path):
        chance = self.chance = random.Random(f"campaign {number}")
        self.form = chance.choice([*forms])
        self.dataset = forms[self.form]
        has_layers = bool(self.dataset.layers)
        self.selection = self.dataset.search(
            sample=chance.choice([NUM_PATCHES, NUM_PATCHES, 31, 12, 1]), sample_seed=chance.randrange(9)
        )
        self.rows = chance.choice([None, None, "one", "all", "list"]) if has_layers else None
        if self.rows is not None:
            self.selection = self.dataset.search(has=["txt"]).with_rows("txt", rule=self.rows)
        self.weights = None
        if chance.random() < 0.5:
            self.weights = np.array(
                [chance.choice([0, 0.3, 1, 1, 1.5, 2.25, 4]) for _ in range(len(self.selection))]
            )
            self.weights[0] = max(self.weights[0], 1)
            self.selection = self.selection.weighted(self.weights, passes=chance.choice([1, 1, 2, 3]))
        self.options = {
            "modalities": ["map", *(["heights"] if has_layers and chance.random() < 0.5 else [])],
            "seed": chance.randrange(100),
            "shuffle": chance.random() < 0.8,
            "drop_last": chance.random() < 0.2,
            "lanes": chance.choice([1, 2, 3, 8, 8, 8, 12]),
            "window": chance.choice([1, 1, 2, 4]),
            "prefetch": chance.choice([None, 0, 3]),
            "fetch_threads": chance.choice([1, 2, 8]),
            "gather_threads": chance.choice([1, 2, 3]),
            "layout": chance.choice(["arrays", "arrays", "records"]),
            "form": "zarr" if self.form == "zarr" else "shards",
        }
        if self.form == "cached":
            self.options |= {"cache_dir": tmp_path / "cache", "cache_bytes": chance.choice([None, 10**6])}
        self.epoch = chance.randrange(5)
        # Runs of one epoch: (ranks, samples of a rank's batch, steps; None: to the end).
        self.runs = []
        for _ in range(chance.choice([0, 1, 1, 2])):
            world_size = chance.choice([1, 2, 3, 4, 5, 6, 7, 8, 12])
            self.runs.append((world_size, chance.choice([1, 2, 3, 5]), chance.randrange(3)))
        self.runs.append((chance.choice([1, 2, 3, 6, 7, 8]), chance.choice([1, 2, 4, 7]), None))

    def __str__(self):
        return f"{self.form} {len(self.selection)} {self.rows} {self.weights} {self.options} {self.epoch} {self.runs}"

    def samples(self):
        """The samples that the epoch must have: (position in the selection) -> how often."""
        rows = [1] * len(self.selection)
        if self.rows == "all":
            rows = self.selection.drawn[0].counts.tolist()
        if self.weights is None:
            return collections.Counter(dict(enumerate(rows)))
        units = units_of(np.repeat(self.selection.repeats.weights, rows))
        counts = epoch_counts(units, seed=self.options["seed"], epoch=self.epoch)
        whose = np.repeat(np.arange(len(rows)), rows)
        return +collections.Counter(dict(enumerate(np.bincount(whose, counts).astype(int).tolist())))

    def loader(self, batch_size, **options):
        return RawLoader(
            self.selection, batch_size=batch_size, **{**self.options, "epoch": self.epoch, **options}
        )


def names_of(batch):
    """What the valid rows of a batch are: position in the selection, and text."""
    num = int(np.count_nonzero(batch["valid"]))
    assert batch["valid"][:num].all(), "padding comes last"
    texts = [str(text) for text in batch["txt:t"]][:num] if "txt:t" in batch else [""] * num
    return [*zip(batch["index"][:num].tolist(), texts, strict=True)]


def check(configuration, truth, batch, batch_size, padded):
    """Pixels, layer, labels and padding of one batch."""
    ids, num = configuration.selection.patch_ids, int(np.count_nonzero(batch["valid"]))
    assert len(batch["valid"]) == (batch_size if padded else num)
    for row, index in enumerate(batch["index"].tolist()):
        if row >= num:
            assert index == -1
            assert not batch["map"][row].any()
            continue
        number, patch, payload, labels = truth[ids[index]]
        assert np.array_equal(
            batch["map"][row].reshape(-1).view(np.uint8), payload if batch["map"].ndim == 2 else patch
        )
        assert np.array_equal(batch["labels"][row], labels)
        if "heights" in batch and batch["heights"].dtype == np.int16:
            assert (batch["heights"][row] == (number if number % 3 else 0)).all()
            assert batch["heights_present"][row] == bool(number % 3)
        if "w:n" in batch:
            assert batch["w:n"][row] == number


@pytest.fixture(scope="module")
def truth(forms):
    """Patch id -> (number, bytes of its map's pixels, bytes of the map's payload, labels), read with `tarfile`."""
    dataset = forms["local"]
    payloads = {}
    for path in sorted(dataset.store.local_path().glob("shards/*/map/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".map.safetensors"):
                    payloads[member.name.partition(".")[0]] = np.frombuffer(
                        tar.extractfile(member).read(), np.uint8
                    )
    selection = dataset.search()
    labels = dataset.schema.classes.encode(selection.column("reben:labels"))
    pixels = 120 * 120 * 2
    return {
        one: (number, payloads[one][-pixels:], payloads[one], labels[number])
        for number, one in enumerate(selection.patch_ids)
    }


@pytest.mark.slow
@pytest.mark.parametrize("begin", range(FIRST, FIRST + COUNT, 10))
def test_random_configurations_deliver_what_they_must(forms, truth, tmp_path, begin):
    for number in range(begin, min(begin + 10, FIRST + COUNT)):
        configuration = Configuration(number, forms, tmp_path / str(number))
        try:
            run(configuration, truth)
        except Exception as error:
            raise AssertionError(f"configuration {number}: {configuration}") from error


def run(configuration, truth):
    order = [name for batch in configuration.loader(16, drop_last=False) for name in names_of(batch)]
    assert collections.Counter(index for index, _ in order) == configuration.samples()
    state, position = None, 0
    for world_size, batch_size, steps in configuration.runs:
        global_batch = world_size * batch_size
        left = len(order) - position
        num_steps = left // global_batch if configuration.options["drop_last"] else -(-left // global_batch)
        if configuration.options["drop_last"] and global_batch > len(order):
            with pytest.raises(rc.NotFoundError, match="drop_last leaves out"):
                configuration.loader(batch_size, world_size=world_size)
            return
        take = num_steps if steps is None else min(steps, max(0, num_steps - 1))
        states, together, total = (
            [],
            [collections.Counter() for _ in range(take)],
            Delivered(epoch=configuration.epoch),
        )
        for rank in range(world_size):
            loader = configuration.loader(batch_size, rank=rank, world_size=world_size, epoch=0)
            loader.set_epoch(configuration.epoch)
            if state is not None:
                loader.load_state_dict(state)
            expected = loader.expected()
            assert expected.batches == num_steps
            iterator = iter(loader)
            for step in range(take):
                batch = next(iterator)
                check(configuration, truth, batch, batch_size, padded=world_size > 1)
                together[step].update(names_of(batch))
            if steps is None:
                assert next(iterator, None) is None
            iterator.close()
            states.append(loader.state_dict())
            delivered = loader.stats().delivered
            if delivered.epoch == configuration.epoch:
                total = total.plus(delivered.num_samples, delivered.value)
        for step, found in enumerate(together):
            begin = position + step * global_batch
            assert found == collections.Counter(order[begin : begin + global_batch]), (
                f"step {step} of {world_size} ranks"
            )
        position = min(position + take * global_batch, len(order))
        if take:
            assert total == expected_delivery(
                configuration.selection,
                epoch=configuration.epoch,
                num_samples=position,
                **{name: configuration.options[name] for name in ("seed", "lanes", "window", "shuffle")},
            )
        state = merge_states(states)
