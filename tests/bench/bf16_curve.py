#!/usr/bin/env python3
"""Loss of the quickstart in fp32 and bf16, for several seeds: is bf16 within the seeds' noise?

Trains configs/quickstart.yaml without checkpoints, seeds and types in turn, and prints the mean
training loss of the last 20 steps and the held-out loss of each run, then means and the spread
over seeds. Exit code 1 if the means differ by more than the larger of twice the spread and 0.02.
"""

import argparse
import json
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


def train(arguments, folder, bf16, seed):
    run = pathlib.Path(folder) / f"{'bf16' if bf16 else 'fp32'}-{seed}"
    command = [
        "mpirun", "-n", str(arguments.ranks), str(arguments.bin / "pecan-train"),
        "--config", str(arguments.config), "--run-dir", str(run),
        "--set", f"training.bf16={'true' if bf16 else 'false'}",
        "--set", f"training.seed={seed}", "--set", "checkpoint.save_interval=0",
    ]
    if arguments.steps:
        command += ["--set", f"training.train_iters={arguments.steps}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | MPI_ENVIRONMENT)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if r.get("kind") == "step"]
    valid = [r for r in records if r.get("kind") == "valid"][-1]
    return {
        "curve": [r["loss"] for r in steps],
        "train_loss": statistics.fmean(r["loss"] for r in steps[-20:]),
        "valid_loss": valid["valid_loss"],
        "step_ms": statistics.median(r["step_ms"] for r in steps),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/dev/bin"))
    parser.add_argument("--config", type=pathlib.Path, default=pathlib.Path("configs/quickstart.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234, 1235, 1236])
    parser.add_argument("--steps", type=int, default=0, help="0: as the configuration says")
    parser.add_argument("--ranks", type=int, default=4)
    arguments = parser.parse_args()

    results = {False: [], True: []}
    with tempfile.TemporaryDirectory(prefix="pecan-bf16-") as folder:
        for seed in arguments.seeds:
            for bf16 in (False, True):
                result = train(arguments, folder, bf16, seed)
                results[bf16].append(result)
                print(f"{'bf16' if bf16 else 'fp32'} seed {seed}: training loss of the last 20 steps "
                      f"{result['train_loss']:.4f}, held-out loss {result['valid_loss']:.4f}, "
                      f"median step {result['step_ms']:.0f} ms", flush=True)

    within = True
    for key, name in (("train_loss", "training"), ("valid_loss", "held-out")):
        mean = {bf16: statistics.fmean(r[key] for r in runs) for bf16, runs in results.items()}
        spread = statistics.stdev(r[key] for r in results[False]) if len(arguments.seeds) > 1 else 0.0
        difference = mean[True] - mean[False]
        limit = max(2 * spread, 0.02)
        within = within and abs(difference) <= limit
        print(f"{name} loss: fp32 {mean[False]:.4f}, bf16 {mean[True]:.4f}, difference "
              f"{difference:+.4f}; standard deviation over fp32 seeds {spread:.4f}, limit {limit:.4f}")
    # The whole curve, seed by seed: the largest distance of 20-step means.
    for seed, fp32, bf16 in zip(arguments.seeds, results[False], results[True]):
        windows = range(0, len(fp32["curve"]) - 19, 20)
        worst = max(abs(statistics.fmean(bf16["curve"][i:i + 20]) - statistics.fmean(fp32["curve"][i:i + 20]))
                    for i in windows)
        print(f"seed {seed}: largest distance of the two curves, in means of 20 steps: {worst:.4f}")
    print("bf16 is within the noise of fp32" if within else "bf16 is NOT within the noise of fp32")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
