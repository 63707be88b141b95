#!/usr/bin/python3
"""What do checkpoints cost? Step times, hidden share, write speed, memory and disk, as ratios.

One process with one thread, so that on two cores one is free for copier and writer; --busy adds the
case without a free core. A save costs what the steps of its interval take longer than as many of
those steps that no longer feel it: each is paired with its neighbours of the same second, since a
shared machine drifts by more than what is to be measured. All figures come from this one run:

  cost      of a PEC save with K/N = 1/8 to storage, and to memory, in steps: what a save at every
            step costs. Mean over runs, and the upper end of its one-sided 95 % interval; beside them
            the same of runs that save nothing, which is the error of the method and the machine
  hidden    of what a blocking full save costs, the share that an asynchronous full save and a PEC
            save do not cost, where the blocking save costs 2.4 and 4.4 steps
  write     bytes a second of the writer over those of plain write + fsync of files of the same sizes
  memory    peak resident memory that checkpoints add, and segments, over the plan's bytes
  kept      bytes in the run directory over a full checkpoint

  tests/bench/checkpoint_cost.py --bin build/release/bin --data data/kjv --work runs/cost

The machine should be quiet. Prints a Markdown table; exit code 1 if a target is missed.
"""

import argparse
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import e2e  # noqa: E402

CONFIG = """
model: {num_layers: 4, hidden_size: 256, num_attention_heads: 8}
moe: {num_experts: 8, moe_ffn_hidden_size: 512, moe_router_topk: 2, moe_aux_loss_coeff: 0.01}
training: {micro_batch_size: 1, seq_length: 256}
data: {data_path: DATA_train, tokenizer_model: DATA.tokenizer.model}
checkpoint: {keep_latest_k: 1, fallback_copies: 0, memory_dir: MEMORY}
logging: {log_interval: 1000000, level: error}
"""
ENVIRONMENT = {**os.environ, **e2e.ENVIRONMENT, "OMPI_MCA_ess_singleton_isolated": "1"}
WARM_UP = 5  # steps, among them the first full checkpoint
NONE = {}
# Steps from one save to the next, and those of them (1: the first behind the save) that feel none.
INTERVAL, CLEAN = 6, (3, 4, 5)
PEC = {"checkpoint.pec.experts_per_checkpoint": 1}
TO_MEMORY = {**PEC, "checkpoint.save_interval": 100000, "checkpoint.non_persistent_save_interval": INTERVAL}
TO_STORAGE = {**PEC, "checkpoint.save_interval": INTERVAL}
WITHOUT = {"checkpoint.save_interval": 100000}
EACH_STEP = {**PEC, "checkpoint.save_interval": 1}
# The same where a save may be felt for longer.
REGIME_INTERVAL, REGIME_CLEAN = 8, (5, 6, 7)
REGIME = {"checkpoint.save_interval": REGIME_INTERVAL}
BLOCKING = {"checkpoint.async_save": "false"}
# One-sided 95 % and two-sided 95 % quantiles of Student's t by degrees of freedom, to 40.
T_UPPER = {4: 2.132, 5: 2.015, 7: 1.895, 9: 1.833, 11: 1.796, 14: 1.761, 19: 1.729, 24: 1.711, 29: 1.699, 39: 1.685}


class Run:
    """One training run: its step times, saves and peak memory."""

    def __init__(self, arguments, steps, settings):
        folder = arguments.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        # Leave the disk's queue to this run alone.
        os.sync()
        command = [str(arguments.bin / "pecan-train"), "--config", str(arguments.work / "config.yaml"),
                   "--run-dir", str(folder), "--set", f"training.train_iters={steps}"]
        for key, value in {"training.threads": 1, "training.global_batch_size": 1, **settings}.items():
            command += ["--set", f"{key}={value}"]
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output = process.stdout.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output[-2000:]}")
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        self.peak_bytes = usage.ru_maxrss * 1024
        self.step_ms = [r["step_ms"] for r in records if r.get("kind") == "step"]
        self.stall_ms = [r["ckpt_stall_ms"] for r in records if r.get("kind") == "step"]
        self.saves = [r for r in records if r.get("kind") == "checkpoint" and r["committed"]]
        self.snapshots = [r for r in records if r.get("kind") == "snapshot" and r["committed"]]
        self.kept_bytes = sum(f.stat().st_size for f in folder.glob("checkpoints/step-*/*.h5"))

    def typical_ms(self):
        return statistics.median(self.step_ms[WARM_UP:])

    def save_costs_ms(self, interval, clean):
        """Of each save but the first, which is full: (cost, a step without it)."""
        costs = []
        for n in range(2 * interval, len(self.step_ms) - interval, interval):
            steps = self.step_ms[n:n + interval]
            usual = statistics.mean(steps[i - 1] for i in clean)
            costs.append((sum(steps) - interval * usual, usual))
        return costs


def upper_bound(values):
    """One-sided 95 % bound of the mean."""
    freedom = max(f for f in T_UPPER if f < len(values))
    return statistics.mean(values) + T_UPPER[freedom] * statistics.stdev(values) / math.sqrt(len(values))


def plain_write(folder, sizes):
    """Bytes a second of write + fsync, file by file, and of the directory."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = memoryview(os.urandom(max(sizes)))
    os.sync()
    start = time.perf_counter()
    for i, size in enumerate(sizes):
        descriptor = os.open(folder / str(i), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        done = 0
        while done < size:
            done += os.write(descriptor, data[done:size])
        os.fsync(descriptor)
        os.close(descriptor)
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return sum(sizes) / seconds


class Table:
    def __init__(self):
        self.rows = []
        self.missed = []

    def add(self, what, value, target, good):
        self.rows.append(f"| {what} | {value} | {target} |")
        print(self.rows[-1], flush=True)
        if good is False:
            self.missed.append(what)

    def text(self):
        return "\n".join(["| what | measured | target |", "| --- | --- | --- |", *self.rows])


def cost_of_saves(arguments, table, threads, runs, limit):
    common = {"training.threads": threads, "training.global_batch_size": 2}
    steps = (arguments.saves + 3) * INTERVAL
    core = "a free core" if threads == 1 else "no free core"
    variants = {"PEC save, K/N = 1/8, to storage": TO_STORAGE, "PEC save, K/N = 1/8, to memory": TO_MEMORY,
                "no save": WITHOUT}
    costs = {name: [] for name in variants}
    stalls = {name: [] for name in variants}
    for i in range(runs):
        for name, settings in variants.items():
            run = Run(arguments, steps, {**common, **settings})
            pairs = run.save_costs_ms(INTERVAL, CLEAN)
            costs[name].append(statistics.median(cost / usual for cost, usual in pairs))
            stalls[name] += [ms for ms in run.stall_ms[2 * INTERVAL:] if ms > 0]
    for name, of_runs in costs.items():
        bound = upper_bound(of_runs)
        judged = limit and variants[name] is not WITHOUT
        table.add(f"{name}, {core}: cost in steps, {runs} runs of {arguments.saves} intervals",
                  f"{100 * statistics.mean(of_runs):+.2f} %, upper bound {100 * bound:+.2f} %; "
                  f"stall {statistics.median(stalls[name] or [0]):.2f} ms",
                  f"<= {100 * limit:.0f} %" if judged else "-", bound <= limit if judged else None)


def each_step(arguments, table):
    run = Run(arguments, 40, EACH_STEP)
    share = sum(s["step"] > WARM_UP for s in run.saves) / (40 - WARM_UP)
    table.add("PEC saves asked for at every step that were committed", f"{100 * share:.0f} %", "-", None)


def regime(arguments, table, name, seq_length):
    """Costs of a save in milliseconds, where the blocking one costs `name` steps."""
    common = {"training.seq_length": seq_length, **REGIME}
    variants = {"blocking": {**common, **BLOCKING}, "full": common, "PEC": {**common, **PEC}}
    cost = {v: [] for v in variants}
    usual_ms = []
    speeds = []
    for i in range(arguments.repeats):
        for variant, settings in variants.items():
            run = Run(arguments, (arguments.saves + 3) * REGIME_INTERVAL, settings)
            pairs = run.save_costs_ms(REGIME_INTERVAL, REGIME_CLEAN)
            cost[variant].append(statistics.median(c for c, _ in pairs))
            usual_ms += [usual for _, usual in pairs]
            if variant == "blocking":
                speeds += written_speeds(arguments, run)
    blocking, step_ms = statistics.mean(cost["blocking"]), statistics.median(usual_ms)
    table.add(f"blocking full save in steps, sequence {seq_length} ({name} wanted)",
              f"{blocking / step_ms:.2f} ({blocking:.0f} ms, step {step_ms:.0f} ms)", name, None)
    for variant in ("full", "PEC"):
        hidden = 1 - statistics.mean(cost[variant]) / blocking
        error = statistics.stdev(cost[variant]) / blocking / math.sqrt(len(cost[variant]))
        table.add(f"hidden of it, asynchronous {variant}, {arguments.repeats} runs of {arguments.saves} saves",
                  f"{100 * hidden:.1f} % (standard error {100 * error:.1f})",
                  ">= 98.9 %" if variant == "PEC" else "-", hidden >= 0.989 if variant == "PEC" else None)
    return speeds


def written_speeds(arguments, run):
    """Pairs of the writer's speed and that of plain writes of files of the same sizes."""
    last = run.saves[-1]
    sizes = [f.stat().st_size for f in sorted((arguments.work / "run").glob(f"checkpoints/step-{last['step']:08}/*.h5"))]
    if not sizes:
        return []
    ours = statistics.median(s["bytes_rank0"] / s["persist_ms"] * 1000 for s in run.saves[1:])
    plain = statistics.median(plain_write(arguments.work / "plain", sizes) for _ in range(3))
    return [(ours, plain)]


def calibrate(arguments):
    """Sequence lengths with which a blocking full save costs 2.4 and 4.4 steps, or the nearest there is."""
    def typical_ms(length):
        return Run(arguments, WARM_UP + 15, {"training.seq_length": length}).typical_ms()
    short, long = typical_ms(32), typical_ms(256)
    per_token = (long - short) / (256 - 32)
    run = Run(arguments, (arguments.saves + 3) * REGIME_INTERVAL, {"training.seq_length": 96, **REGIME, **BLOCKING})
    save = statistics.median(cost for cost, _ in run.save_costs_ms(REGIME_INTERVAL, REGIME_CLEAN))
    lengths = {}
    for steps in (2.4, 4.4):
        length = 32 + (save / steps - short) / per_token
        lengths[str(steps)] = max(8, 8 * round(length / 8))
    return lengths


def planned_bytes(arguments, settings):
    """Bytes of a full checkpoint."""
    command = [str(arguments.bin / "pecan-plan"), "--config", str(arguments.work / "config.yaml"), "--json"]
    for key, value in {"training.global_batch_size": 1, "checkpoint.save_interval": 4, **settings}.items():
        command += ["--set", f"{key}={value}"]
    plan = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout
    return json.loads(plan)["checkpoint_bytes"]["full"]


def memory_and_disk(arguments, table):
    full_bytes = planned_bytes(arguments, {})
    # Large enough that threads and libraries of a run with checkpoints do not count.
    large = {"model.hidden_size": 512, "moe.num_experts": 16, "moe.moe_ffn_hidden_size": 1024, "training.seq_length": 32}
    large_bytes = planned_bytes(arguments, large)
    without = Run(arguments, 6, large)
    full = Run(arguments, 6, {**large, "checkpoint.save_interval": 4})
    ratio = (full.peak_bytes - without.peak_bytes) / large_bytes
    table.add("peak resident memory that a full save adds, over the planned buffer", f"{ratio:.3f}",
              "0.95 to 1.05", 0.95 <= ratio <= 1.05)
    pec = Run(arguments, 49, {"checkpoint.save_interval": 1, "checkpoint.pec.experts_per_checkpoint": 1})
    table.add("bytes kept after 49 PEC saves over a full checkpoint", f"{pec.kept_bytes / full_bytes:.3f}",
              "<= 1.5", pec.kept_bytes <= 1.5 * full_bytes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of the programs")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="prefix that pecan-data prepare has written")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="scratch folder on the disk to be measured")
    parser.add_argument("--memory-dir", default="/dev/shm", help="for snapshots in memory")
    parser.add_argument("--runs", type=int, default=20, help="for the cost of a PEC save")
    parser.add_argument("--repeats", type=int, default=8, help="of each regime")
    parser.add_argument("--saves", type=int, default=8, help="that are measured in a run")
    parser.add_argument("--busy", action="store_true", help="also without a free core")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    text = CONFIG.replace("DATA", str(arguments.data.resolve())).replace("MEMORY", arguments.memory_dir)
    (arguments.work / "config.yaml").write_text(text)
    table = Table()
    memory_and_disk(arguments, table)
    speeds = []
    for name, length in calibrate(arguments).items():
        speeds += regime(arguments, table, name, length)
    ratios = [ours / plain for ours, plain in speeds]
    table.add("speed of the writer over plain write + fsync",
              f"{statistics.median(ratios):.2f} ({statistics.median(o for o, _ in speeds) / 1e9:.2f} of "
              f"{statistics.median(p for _, p in speeds) / 1e9:.2f} GB/s; runs {min(ratios):.2f} to {max(ratios):.2f})",
              ">= 0.90", statistics.median(ratios) >= 0.9)
    each_step(arguments, table)
    cost_of_saves(arguments, table, threads=1, runs=arguments.runs, limit=0.03)
    if arguments.busy:
        cost_of_saves(arguments, table, threads=os.cpu_count(), runs=max(6, arguments.runs // 3), limit=0)
    shutil.rmtree(arguments.work / "run", ignore_errors=True)
    print("\n" + table.text())
    for what in table.missed:
        print(f"missed: {what}")
    return 1 if table.missed else 0


if __name__ == "__main__":
    sys.exit(main())
