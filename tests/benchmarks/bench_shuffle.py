"""How well batches of the real train split mix: variance of batch means beside independent samples (design effect).

    python -m tests.benchmarks.bench_shuffle METADATA_PARQUET

1 is a true random order; batch size / design effect is the effective batch size. "labels" is the multi-hot label
vector, "products" the Sentinel-2 acquisition. Index arithmetic only, no pixels.
"""

from __future__ import annotations

import argparse

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reben_cloud.bigearthnet import labels
from reben_cloud.sampling import EpochOrder, design_effect, random_words, shuffled_order, stratified_order

SHARD = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metadata", help="official metadata.parquet")
    table = pq.read_table(parser.parse_args().metadata, columns=["patch_id", "labels", "split"])
    table = table.filter(pc.equal(table["split"], "train")).sort_by("patch_id")
    ids = pc.utf8_slice_codeunits(table["patch_id"].combine_chunks(), 0, -6)
    products = ids.dictionary_encode().indices.to_numpy()
    multi_hot = labels.encode_many(table["labels"]).astype(np.float32)
    one_hot = np.eye(products.max() + 1, dtype=np.float32)[products]
    n = len(products)
    counts, rows = np.bincount(np.arange(n) // SHARD), np.arange(n) % SHARD
    written = {
        "patch id": np.arange(n),
        "shuffled": shuffled_order(n, seed=0),
        "stratified": stratified_order(products, seed=0, shard_samples=SHARD),
    }
    print("write order   lanes window batch ranks   labels products")
    for name, stored in written.items():
        for lanes, window in ((8, 1), (8, 4), (1, 4), (64, 1)):
            samples = stored[EpochOrder(counts, rows, seed=1, lanes=lanes, window=window).take(np.arange(n))]
            for batch, ranks in ((64, 1), (256, 1), (512, 1), (512, 4)):
                if lanes % ranks:
                    continue
                show(
                    f"{name:12s} {lanes:6d} {window:6d}",
                    samples[::ranks],
                    batch // ranks,
                    ranks,
                    multi_hot,
                    one_hot,
                )
    truly = np.argsort(random_words(n, "bench"))
    for batch in (64, 256, 512):
        show(f"{'a true random permutation':26s}", truly, batch, 1, multi_hot, one_hot)


def show(what: str, samples: np.ndarray, batch: int, ranks: int, *features: np.ndarray) -> None:
    batches = list(samples[: len(samples) // batch * batch].reshape(-1, batch))
    effects = " ".join(f"{design_effect(f, batches):8.3f}" for f in features)
    print(f"{what} {batch:5d} {ranks:5d} {effects}")


if __name__ == "__main__":
    main()
