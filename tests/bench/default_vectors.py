#!/usr/bin/env python3
"""Default vectors at equal tokens: loss with and without them, for several seeds, and their cost.

Trains a configuration without checkpoints, with the same router (softmax over all experts, then
top-k) in both variants, seeds and variants in turn. Prints as Markdown the training loss of the
last 20 steps, the held-out loss and the median step time: means and standard deviations over
seeds, the differences seed by seed with their standard error, and means of the curves every few
steps. Each run is told on stderr. Nothing is judged.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMP_NUM_THREADS": "1",
}
FIGURES = {"train_loss": "training loss", "valid_loss": "held-out loss", "step_ms": "step, ms"}


def train(arguments, folder, name, settings, seed):
    run = pathlib.Path(folder) / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    command = ["mpirun", "-n", str(arguments.ranks), str(arguments.bin / "pecan-train"), "--run-dir", str(run)]
    for config in arguments.config:
        command += ["--config", str(config)]
    settings = ["checkpoint.save_interval=0", "moe.moe_router_pre_softmax=true", f"training.seed={seed}", *settings]
    if arguments.steps:
        settings.append(f"training.train_iters={arguments.steps}")
    for setting in [*settings, *arguments.set]:
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | MPI_ENVIRONMENT)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if r.get("kind") == "step"]
    valid = [r for r in records if r.get("kind") == "valid"]
    return {
        "curve": [r["loss"] for r in steps],
        "train_loss": statistics.fmean(r["loss"] for r in steps[-20:]),
        "valid_loss": valid[-1]["valid_loss"] if valid else math.nan,
        "step_ms": statistics.median(r["step_ms"] for r in steps),
    }


def deviation(values):
    return statistics.stdev(values) if len(values) > 1 else math.nan


def print_table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("| --- |" + " ---: |" * (len(header) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/release/bin"))
    parser.add_argument("--config", type=pathlib.Path, nargs="+", default=[pathlib.Path("configs/quickstart.yaml")])
    parser.add_argument("--set", nargs="*", default=[], help="further settings of all runs, such as moe.num_experts=8")
    parser.add_argument("--beta", type=float, nargs="+", default=[0.9], help="a variant each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234, 1235, 1236, 1237, 1238])
    parser.add_argument("--steps", type=int, default=0, help="0: as the configuration says")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--every", type=int, default=50, help="steps between two rows of the curves")
    arguments = parser.parse_args()

    variants = {"top-k": []}
    for beta in arguments.beta:
        variants[f"default vectors, beta {beta:g}"] = [
            "moe.default_vectors.enabled=true", f"moe.default_vectors.beta={beta}"]
    results = {name: [] for name in variants}
    with tempfile.TemporaryDirectory(prefix="pecan-default-vectors-") as folder:
        for seed in arguments.seeds:
            for name, settings in variants.items():
                result = train(arguments, folder, name, settings, seed)
                results[name].append(result)
                print(f"seed {seed}, {name}: " + ", ".join(
                    f"{meaning} {result[key]:.4f}" for key, meaning in FIGURES.items()), file=sys.stderr, flush=True)

    seeds = len(arguments.seeds)
    print_table(
        [f"means of {seeds} seeds (standard deviation)", *FIGURES.values()],
        [[name, *(f"{statistics.fmean(r[key] for r in runs):.4f} ({deviation([r[key] for r in runs]):.4f})"
                  for key in FIGURES)] for name, runs in results.items()])
    rows = []
    for name, runs in results.items():
        if name == "top-k":
            continue
        cells = [name]
        for key in FIGURES:
            # Both runs of a seed start from the same model and see the same tokens.
            apart = [run[key] - plain[key] for run, plain in zip(runs, results["top-k"])]
            mean = statistics.fmean(apart)
            cells.append(f"{mean:+.4f} +- {deviation(apart) / math.sqrt(seeds):.4f}")
        plain_ms = statistics.fmean(r["step_ms"] for r in results["top-k"])
        cells[-1] += f" ({100 * statistics.fmean(r['step_ms'] for r in runs) / plain_ms - 100:+.2f} %)"
        rows.append(cells)
    print_table(["difference to top-k, seed by seed (mean +- standard error)", *FIGURES.values()], rows)

    length = min(len(run["curve"]) for runs in results.values() for run in runs)
    rows = []
    for end in range(arguments.every, length + 1, arguments.every):
        first = max(0, end - 20)
        rows.append([str(end), *(f"{statistics.fmean(statistics.fmean(run['curve'][first:end]) for run in runs):.4f}"
                                 for runs in results.values())])
    if rows:
        print_table(["step", *results], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
