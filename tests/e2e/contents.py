#!/usr/bin/python3
"""Checkpoints hold the same items with the same values, whatever the layout that wrote them.

usage: contents.py --bin DIR --mpiexec PATH

The same three steps in double precision in every layout, each with a full checkpoint at its end, which h5py puts together.
"""

import argparse
import sys

try:
    import h5py
    import numpy as np
except ImportError as error:
    print(f"skipped: {error}; install python3-h5py and python3-numpy")
    sys.exit(77)

import e2e

STEPS = 3


def read_items(run_dir):
    """Whole items by path, from the blocks of all ranks; and the paths of which some element is not written once."""
    items, written = {}, {}
    for shard_path in sorted((run_dir / "checkpoints" / f"step-{STEPS:08d}").glob("rank-*.h5")):
        with h5py.File(shard_path, "r") as shard:
            blocks = []
            shard.visititems(lambda name, node: blocks.append(name) if isinstance(node, h5py.Dataset) else None)
            for name in blocks:
                block = shard[name]
                path = "/".join(name.split("/")[:2])
                shape, offset = tuple(block.attrs["global_shape"]), tuple(block.attrs["offset"])
                whole = items.setdefault(path, np.zeros(shape, block.dtype))
                count = written.setdefault(path, np.zeros(shape, int))
                place = tuple(slice(o, o + n) for o, n in zip(offset, block.shape))
                whole[place] = block[()]
                count[place] += 1
    return items, [path for path, count in written.items() if not np.all(count == 1)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--mpiexec", default="mpirun")
    arguments = parser.parse_args()
    lab = e2e.Lab(arguments)
    try:
        settings = ["training.compute_dtype=fp64", f"training.train_iters={STEPS}", "checkpoint.pec.experts_per_checkpoint=8",
                    "moe.moe_shared_expert_intermediate_size=16", "model.num_layers=3", "moe.moe_layer_freq=[0,1,1]",
                    "model.ffn_hidden_size=48", "model.untie_embeddings_and_output_weights=true", "model.qk_layernorm=true"]
        alone = None
        for label, (ranks, layout) in e2e.LAYOUTS.items():
            run_dir = lab.folder / f"contents-{label.replace(', ', '-').replace(' ', '-')}"
            lab.train(ranks, run_dir, *[o for setting in [*settings, *layout] for o in ("--set", setting)])
            items, badly_covered = read_items(run_dir)
            e2e.check(badly_covered == [], f"{label}: every element is written once {badly_covered[:3]}")
            if alone is None:
                alone = items
                e2e.check(len(items) > 200, f"{label}: {len(items)} items")
                continue
            e2e.check(items.keys() == alone.keys(), f"{label}: the same items")
            for path in sorted(items.keys() & alone.keys()):
                mine, other = items[path], alone[path]
                if mine.dtype.kind == "i":
                    agree = np.array_equal(mine, other)
                else:
                    agree = mine.shape == other.shape and np.linalg.norm(mine - other) <= 1e-9 * np.linalg.norm(other)
                if not agree:
                    e2e.check(False, f"{label}: {path} differs")
            e2e.check(True, f"{label}: {len(items)} items compared")
    finally:
        lab.close()
    return 1 if e2e.failures else 0


if __name__ == "__main__":
    sys.exit(main())
