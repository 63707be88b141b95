#!/usr/bin/env python3
"""How each kernel of a training step reaches memory: sectors a request, and passes over the banks of shared memory.

Trains a step of small models over the checked emulation, which counts them (docs/testing.md), prints a table by kernel, and fails
where a kernel needs more transfers than its limit. Standard library only.

usage: access.py --bin DIR --mpiexec PATH --library PATH

A request is one access of a warp. It takes at least the 32-byte sectors that its bytes fill, or one pass over the banks for each 128
bytes of shared memory; the factors are what it takes over that, 1 at best.
"""
import argparse
import collections
import os
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from e2e import Lab, check, failures, settings  # noqa: E402

# Rows are multiples of 16 bytes, as in every real model; one step reaches each kernel.
SHAPES = ["model.hidden_size=128", "model.num_attention_heads=2", "model.num_query_groups=1", "moe.moe_ffn_hidden_size=64", "training.seq_length=64",
          "training.train_iters=1", "optimizer.lr_warmup_iters=0", "training.global_batch_size=1", "training.device=cuda", "checkpoint.save_interval=0",
          "data.valid_data_path=''"]
RUNS = {
    "bf16": ["training.bf16=true", "model.qk_layernorm=true", "moe.default_vectors.enabled=true", "moe.moe_router_pre_softmax=true",
             "moe.expert_compute=block_sparse"],
    "f32": ["model.normalization=LayerNorm", "model.disable_bias_linear=false", "model.swiglu=false", "moe.moe_expert_capacity_factor=1.5",
            "data.reset_attention_mask=true", "moe.expert_compute=block_sparse"],
}
# Factors beyond which a kernel may not go: global reads, global writes, shared memory. The first pattern that fits its name counts.
LIMITS = [
    # The host's compiler takes 16 bytes of bf16 apart, where a device loads them at once: 8 times the sectors by this count, and a
    # tile's stores meet in banks that one store of 16 bytes would pass in turn.
    (r"^attention_(forward|dq|dkv)_kernel<bfloat16", (8.01, 1.5, 3.5)),
    (r"^attention_(forward|dq|dkv)_kernel<float", (4.01, 1.5, 1.5)),
    (r"^block_sparse_(sdd|dsd|weight)_kernel<bfloat16", (1.5, 1.5, 3.5)),
    (r"^block_sparse_(sdd|dsd|weight)_kernel<float", (1.5, 1.5, 1.6)),
    # Likewise the 32 bytes of f32 that a thread has; a device loads them as two times 16.
    (r"^adamw_kernel|^map_[12]_kernel<.*float", (8.01, 8.01, 1.1)),
    # To places that depend on the data.
    (r"^(rank|capacity|router_counts)_kernel", (1.5, 2.5, 1.1)),
    (r"", (1.5, 1.5, 1.1)),
]
KINDS = ("global read", "global write", "shared read", "shared write")


def counts_of(lab, name, options):
    """(requests, transfers, at best) by kernel and kind of access."""
    file = lab.folder / f"{name}.statistics"
    os.environ["PECAN_EMULATION_STATISTICS"] = str(file)
    lab.train(1, lab.folder / name, *settings(*SHAPES, *options))
    del os.environ["PECAN_EMULATION_STATISTICS"]
    counts = collections.defaultdict(lambda: {kind: [0, 0, 0] for kind in KINDS})
    for line in file.read_text().splitlines():
        kernel, _, kind, *numbers = line.split("\t")
        kernel = re.sub(r"pecan::(kernels::)?|__nv_|const |, (float|double)(?=>$)", "", kernel)
        of_kind = counts[kernel][kind]
        for i, number in enumerate(numbers):
            of_kind[i] += int(number.split()[0])
    return counts


def row_of(counts):
    """Sectors a request and factor of reads and writes, and the factor of shared memory; None without accesses."""
    shared = [counts["shared read"][i] + counts["shared write"][i] for i in range(3)]
    ratio = [(a / b if b else None) for a, b in [
        (counts["global read"][1], counts["global read"][0]), counts["global read"][1:],
        (counts["global write"][1], counts["global write"][0]), counts["global write"][1:], shared[1:]]]
    return ratio


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--mpiexec", default="mpirun")
    parser.add_argument("--library", required=True, help="libpecan_cuda_checked.so")
    arguments = parser.parse_args()
    os.environ["PECAN_CUDA_LIBRARY"] = arguments.library
    lab = Lab(arguments)
    try:
        kernels = {}
        for name, options in RUNS.items():
            for kernel, counts in counts_of(lab, name, options).items():
                kernels.setdefault(kernel, counts)
    finally:
        lab.close()
    print("| kernel | sectors a read | factor | sectors a write | factor | shared memory |\n| --- | --- | --- | --- | --- | --- |")
    for kernel, counts in sorted(kernels.items()):
        row = row_of(counts)
        print(f"| `{kernel}` | " + " | ".join("" if value is None else f"{value:.2f}" for value in row) + " |")
    for kernel, counts in sorted(kernels.items()):
        limits = next(limits for pattern, limits in LIMITS if re.search(pattern, kernel))
        for what, factor, limit in zip(("reads", "writes", "shared memory"), row_of(counts)[1::2] + row_of(counts)[4:], limits):
            if factor is not None and factor > limit:
                check(False, f"{kernel}: {what} take {factor:.2f} times the transfers that they need at least, limit {limit}")
    check(len(kernels) > 25, f"{len(kernels)} kernels were seen")
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
