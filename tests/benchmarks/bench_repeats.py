"""What weights and mixtures do to an epoch of the real train split: shares of classes, spread of copies, mixing.

Run it with the folder of the official metadata: ``python tests/benchmarks/bench_repeats.py DIR``. No pixel is read: the
orders are those of the loader, of shards of 256 in stratified order.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reben_cloud.bigearthnet import labels
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.root.repeats import copies_of, epoch_counts, repeat_factors, units_of
from reben_cloud.sampling import EpochOrder, design_effect, stratified_order

SHARD = 256
BATCH = 256


def train_split(folder):
    """(multi-hot labels, product number) of the recommended train patches, in patch id order."""
    table = pq.read_table(folder / "metadata.parquet", columns=["patch_id", "labels", "split"])
    table = table.filter(pc.equal(table["split"], "train")).sort_by("patch_id")
    products = pc.utf8_slice_codeunits(table["patch_id"].combine_chunks(), 0, -6).dictionary_encode()
    return labels.encode_many(table["labels"]), products.indices.to_numpy()


def epoch_of(stored, counts, *, passes=1, window=1, epoch=0):
    """Patches in the order of an epoch; `counts` are of the patches in stored order."""
    entry, _, passed = copies_of(counts, passes)
    shards = -(-len(counts) // SHARD)
    shard = passed * shards + entry // SHARD
    sizes = np.bincount(shard, minlength=shards * passes)
    parts = np.arange(shards * passes) // shards if passes > 1 else None
    order = EpochOrder(sizes, entry % SHARD, epoch=epoch, lanes=8, window=window * passes, parts=parts)
    return stored[entry[order.take(np.arange(len(entry)))]]


def distances(delivered):
    """How far apart two neighbouring copies of a patch are, in samples of all ranks."""
    order = np.argsort(delivered, kind="stable")
    same = delivered[order][1:] == delivered[order][:-1]
    return np.diff(order)[same]


def batches_of(delivered):
    return list(delivered[: len(delivered) // BATCH * BATCH].reshape(-1, BATCH))


def twice_in_a_batch(delivered):
    """Share of the samples of batches that are a second copy of one in the same batch."""
    batches = batches_of(delivered)
    return sum(BATCH - len(np.unique(batch)) for batch in batches) / (BATCH * len(batches))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    multi_hot, products = train_split(parser.parse_args().folder)
    names = REBEN.classes.names
    share = multi_hot.mean(axis=0)
    rarest = int(np.argmin(share))
    stored = stratified_order(products, seed=0, shard_samples=SHARD)

    print(
        f"{len(multi_hot):,} patches; median share of a class {np.median(share):.4f}; rarest: {names[rarest]}"
    )
    print(
        "\npower | samples | rarest class: share before, after, times as often | largest weight | classes below 5 %"
    )
    factors = {power: repeat_factors(multi_hot, power=power) for power in (0.25, 0.5, 0.75, 1.0)}
    for power, weights in factors.items():
        counts = epoch_counts(units_of(weights), seed=0, epoch=0)
        after = (multi_hot * counts[:, None]).sum(axis=0) / counts.sum()
        times = (multi_hot * counts[:, None]).sum(axis=0)[rarest] / multi_hot.sum(axis=0)[rarest]
        print(
            f"{power} | {counts.sum():,} ({counts.sum() / len(counts):.2f}x) | "
            f"{share[rarest]:.4%}, {after[rarest]:.4%}, {times:.2f} | "
            f"{weights.max():.2f} | {(share < 0.05).sum()} -> {(after < 0.05).sum()}"
        )
    weights = factors[0.5]
    counts = epoch_counts(units_of(weights), seed=0, epoch=0)
    for name, before, after in sorted(
        zip(names, share, (multi_hot * counts[:, None]).sum(axis=0) / counts.sum(), strict=True),
        key=lambda x: x[1],
    ):
        print(f"  {before:8.3%} -> {after:8.3%}  {name}")

    for kind, chosen in (("balanced(0.5)", weights), ("every patch 4 times", np.full(len(weights), 4.0))):
        counts = epoch_counts(units_of(chosen), seed=0, epoch=0)[stored]
        features = multi_hot.astype(np.float32)
        repeated = features[np.repeat(stored, counts)]
        print(
            f"\n{kind}: passes, window | design effect | copies: closest, 1 % quantile, median | twice in a batch"
        )
        for passes, window in ((1, 1), (1, 4), (2, 1), (4, 1), (8, 1), (8, 2)):
            delivered = epoch_of(stored, counts, passes=passes, window=window)
            show(f"{passes}, {window}", features, repeated, delivered)
        random = np.random.default_rng(0).permutation(np.repeat(stored, counts))
        show("at random", features, repeated, random)

    print(f"\ntwo roots, 1 to 1: window | design effect of the root a sample is of, in batches of {BATCH}")
    half = len(stored) // 2 // SHARD * SHARD
    sizes = np.full(2 * half // SHARD, SHARD)
    parts = np.repeat([0, 1], half // SHARD)
    rows = np.arange(2 * half) % SHARD
    membership = (np.arange(2 * half) >= half).astype(np.float32)[:, None]
    for window in (1, 2, 4, 8, 16):
        order = EpochOrder(sizes, rows, lanes=8, window=window, parts=parts)
        found = design_effect(membership, batches_of(order.take(np.arange(2 * half))))
        print(f"{window} | {found:.3f}")


def show(what, features, repeated, delivered):
    apart, batches = distances(delivered), batches_of(delivered)
    # As `design_effect`, but in these epochs some patches come more often.
    means = np.stack([features[batch].mean(axis=0) for batch in batches])
    observed = ((means - repeated.mean(axis=0)) ** 2).mean(axis=0)
    effect = observed.sum() * BATCH / repeated.var(axis=0).sum()
    distance = f"{apart.min()}, {np.quantile(apart, 0.01):.0f}, {np.median(apart):.0f}"
    print(f"{what} | {effect:.3f} | {distance} | {twice_in_a_batch(delivered):.3%}")


if __name__ == "__main__":
    main()
