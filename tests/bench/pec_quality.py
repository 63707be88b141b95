#!/usr/bin/python3
"""What do failures cost a model whose experts are saved in turn? The quality experiment.

Trains a small mixture of experts on the quickstart's corpus, without failures and with one or
several SIGKILLs, for each number K of experts in a checkpoint and each byte mode. Runs are paired by
seed, data and steps of the failures: what is told is the held-out loss minus that of the run of
the same seed without failure. Two more sets measure the lost tokens (PLT) of recovery from memory
and the growth of K under a budget.

  tests/bench/pec_quality.py --bin build/release/bin --data data/kjv --work runs/quality
  tests/bench/pec_quality.py --work runs/quality --report docs

Each finished run is one line of WORK/results.jsonl, and a restart trains only what is missing. With
--report nothing is trained: tables and figures are written from what is there.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import e2e  # noqa: E402

NUM_LAYERS, NUM_EXPERTS = 2, 8
STEPS, INTERVAL = 320, 8
LONG_STEPS, LONG_INTERVAL = 1280, 4
PLT_BUDGET = 0.0375
CONFIG = f"""
model: {{num_layers: {NUM_LAYERS}, hidden_size: 64, num_attention_heads: 4, num_query_groups: 2, qk_layernorm: true}}
moe: {{num_experts: {NUM_EXPERTS}, moe_ffn_hidden_size: 128, moe_router_topk: 2, moe_layer_freq: 1,
      moe_aux_loss_coeff: 0.01, moe_z_loss_coeff: 0.001}}
training: {{bf16: true, seq_length: 64, micro_batch_size: 8, global_batch_size: 8, threads: 1}}
optimizer: {{lr: 0.002, min_lr: 0.0002, lr_warmup_iters: 20, lr_decay_style: cosine, weight_decay: 0.1,
            adam_beta2: 0.95, clip_grad: 1.0}}
data: {{data_path: DATA_train, valid_data_path: DATA_valid, tokenizer_model: DATA.tokenizer.model}}
checkpoint: {{keep_latest_k: 1, fallback_copies: 0, async_save: false}}
logging: {{log_interval: 80, level: warn}}
"""
# Which role groups of every expert each checkpoint holds.
MODES = {"eq6": "[]", "master_full": "[master]", "weights_full": "[weight]"}
BUDGETS = (1, 2, 4, NUM_EXPERTS)
# A failure comes this many steps after the save that it goes back to.
AFTER_SAVE = 5
FAULT_FREE, NUDGED = "fault-free", "K=8 nudged"
# Changes nothing but roundings: what it does to the loss is the noise of a pair.
NUDGE = "optimizer.adam_eps=1.01e-8"


# ----------------------------------------------------------------------------------------------
# The runs


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: what it is called, what is set, and the saves that it is thrown back to."""

    set: str
    variant: str
    seed: int
    settings: tuple  # "key=value"
    returns: tuple = ()  # steps from which the starts after the first continue
    k: int = 0
    mode: str = ""
    later: tuple = ()  # settings of the starts after the first

    @property
    def key(self):
        return f"{self.set}, {self.variant}, seed {self.seed}"

    @property
    def kills(self):
        """The steps at whose beginning the process is killed, one for each start but the last."""
        return tuple(step + AFTER_SAVE for step in self.returns)

    @property
    def fingerprint(self):
        """Equal for runs of the same settings, wherever the corpus is."""
        told = json.dumps([CONFIG, self.seed, self.settings, self.kills, self.later])
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def settings_of(steps, save_interval, k=NUM_EXPERTS, mode="eq6", more=()):
    return (f"training.train_iters={steps}", f"checkpoint.save_interval={save_interval}",
            f"checkpoint.pec.experts_per_checkpoint={k}", f"checkpoint.pec.always_saved={MODES[mode]}", *more)


def undisturbed(seed):
    """The run that the others are compared with."""
    return Run("base", FAULT_FREE, seed, settings_of(STEPS, 0))


def variant_of(k, mode):
    return f"K={k} {mode}" if k < NUM_EXPERTS else f"K={k}"


def failures(name, returns):
    """A set of runs that fail after the saves `returns`: every K, every byte mode, and the noise of a pair."""
    def runs(seed, budgets, modes):
        # With K = N every mode saves the same.
        pairs = [(k, mode) for k in budgets for mode in modes if k < NUM_EXPERTS or mode == modes[0]]
        everything = settings_of(STEPS, INTERVAL)
        return [undisturbed(seed), Run(name, NUDGED, seed, everything, returns, NUM_EXPERTS, later=(NUDGE,)),
                *(Run(name, variant_of(k, mode), seed, settings_of(STEPS, INTERVAL, k, mode), returns, k, mode)
                  for k, mode in pairs)]
    return runs


def from_memory(seed, budgets, modes):
    """K_checkpoint = 1, snapshots of K_snapshot experts in memory twice as often: MoC's figure 15a."""
    more = (f"checkpoint.non_persistent_save_interval={INTERVAL}", "checkpoint.async_save=true")
    return [undisturbed(seed)] + [
        Run("memory", f"K_snapshot={k}", seed,
            settings_of(STEPS, 2 * INTERVAL, 1, more=(*more, f"checkpoint.pec.experts_per_snapshot={k}")),
            (STEPS // 2 + INTERVAL,), k, "eq6") for k in budgets]


LONG_RETURNS = tuple(range(76, LONG_STEPS - 19, 76))


def under_budget(seed, budgets, modes):
    """Many failures of a longer run, with K fixed and with Dynamic-K: MoC's figure 15b."""
    dynamic = ("checkpoint.pec.dynamic_k=true", f"checkpoint.pec.plt_budget={PLT_BUDGET}")
    return [Run("budget", FAULT_FREE, seed, settings_of(LONG_STEPS, 0)),
            Run("budget", "K=1", seed, settings_of(LONG_STEPS, LONG_INTERVAL, 1), LONG_RETURNS, 1, "eq6"),
            Run("budget", "Dynamic-K", seed, settings_of(LONG_STEPS, LONG_INTERVAL, 1, more=dynamic), LONG_RETURNS, 1, "eq6")]


ONE, THREE = (STEPS // 2,), (STEPS // 4, STEPS // 2, 3 * STEPS // 4)
# Each set, and for how many of the seeds: PLT hardly depends on the seed.
SETS = {
    "one": (failures("one", ONE), None),
    "three": (failures("three", THREE), None),
    "memory": (from_memory, 5),
    "budget": (under_budget, 3),
}
TITLES = {"one": "One failure", "three": "Three failures"}


def runs_of(name, arguments):
    """The runs of a set in the order of seeds, so that what is done at any time is a smaller experiment."""
    make, limit = SETS[name]
    return [run for seed in range(1, arguments.seeds + 1)[:limit]
            for run in make(seed, arguments.budgets, arguments.modes)]


class Results:
    """WORK/results.jsonl: one line for each finished run."""

    def __init__(self, work):
        self.path = work / "results.jsonl"
        self.of = {}
        self.lock = threading.Lock()
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut short
                continue
            self.of[record["key"]] = record

    def add(self, record):
        with self.lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            self.of[record["key"]] = record

    def get(self, run):
        return self.of.get(run.key)

    def require_same(self, runs, corpus=None):
        """Ends the program if a result is of other settings than its run has now, or of another corpus."""
        for run in runs:
            record = self.get(run)
            if record and record["fingerprint"] != run.fingerprint:
                sys.exit(f"pec_quality: {self.path} holds \"{run.key}\" of other settings; use another --work folder")
            if record and corpus and record["corpus"] != corpus:
                sys.exit(f"pec_quality: {self.path} holds \"{run.key}\" of another corpus; use another --work folder")


class Stopped(Exception):
    """The program was asked to end."""


class Trainer:
    """Trains runs, at most `jobs` at a time, until the budget of time is used up or a signal comes."""

    def __init__(self, arguments, results):
        self.bin = arguments.bin
        self.work = arguments.work
        self.scratch = arguments.scratch
        self.jobs = arguments.jobs
        self.deadline = time.monotonic() + 60 * arguments.budget_minutes
        self.results = results
        self.config = self.work / "config.yaml"
        self.config.write_text(CONFIG.replace("DATA", str(arguments.data.resolve())))
        self.corpus = hashlib.sha256(pathlib.Path(f"{arguments.data}_train.bin").read_bytes()).hexdigest()[:16]
        self.children = set()
        self.lock = threading.Lock()
        self.stopping = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.stop)

    def stop(self, *_):
        """Kills what runs; nothing is started any more."""
        self.stopping = True
        for child in list(self.children):
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def command(self, run, *options):
        words = [str(self.bin / "pecan-train"), "--config", str(self.config)]
        for setting in (f"training.seed={run.seed}", *run.settings, *options):
            words += ["--set", setting]
        return words

    def call(self, command, log):
        """Exit code of a program that writes to the file `log`; a signal counts as 128 + its number, as in a shell."""
        with self.lock:
            if self.stopping:
                raise Stopped
            child = subprocess.Popen(command, env={**os.environ, **e2e.ENVIRONMENT}, stdin=subprocess.DEVNULL, stdout=log,
                                     stderr=subprocess.STDOUT, start_new_session=True)
            self.children.add(child)
        if self.stopping:  # the signal came before the child was known
            self.stop()
        code = child.wait()
        self.children.discard(child)
        if self.stopping:
            raise Stopped
        return code if code >= 0 else 128 - code

    def understands(self, run):
        """Whether the programs know every key of a run."""
        options = [f"fault.kill_in_start={i}" for i in range(1, len(run.kills))[:1]]
        return self.call([*self.command(run, *options), "--dump-config"], subprocess.DEVNULL) == 0

    def train(self, run):
        """Trains one run with all its failures and returns its result; RuntimeError if it did not go as planned."""
        began = time.monotonic()
        folder = pathlib.Path(tempfile.mkdtemp(prefix="pecan-quality-", dir=self.scratch))
        try:
            run_dir = folder / "run"
            for start in range(len(run.kills) + 1):
                kill = run.kills[start] if start < len(run.kills) else 0
                options = list(run.later) if start > 0 else []
                if kill:
                    options.append(f"fault.kill_at_step={kill}")
                if kill and start > 0:
                    options.append(f"fault.kill_in_start={start}")
                with open(folder / "log", "w", encoding="utf-8") as log:
                    code = self.call([*self.command(run, *options), "--run-dir", str(run_dir),
                                      *(["--resume-from-failure"] if start > 0 else [])], log)
                expected = 128 + signal.SIGKILL if kill else 0
                if code != expected:
                    raise RuntimeError(f"start {start} ended with exit code {code} instead of {expected}: "
                                       + (folder / "log").read_text()[-2000:])
            return {"key": run.key, "fingerprint": run.fingerprint, "corpus": self.corpus,
                    **measured(run, run_dir), "seconds": round(time.monotonic() - began, 1)}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def train_all(self, runs):
        """Trains what is not done yet; returns the number of runs that went wrong."""
        todo, slowest, wrong = list(runs), 0.0, 0
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            active = {}
            while (todo or active) and not self.stopping:
                while todo and len(active) < self.jobs and time.monotonic() + slowest < self.deadline:
                    run = todo.pop(0)
                    active[pool.submit(self.train, run)] = run
                if not active:
                    print(f"the budget of time is used up; {len(todo)} runs are missing", flush=True)
                    break
                if time.monotonic() > self.deadline + 60:
                    self.stop()
                done, _ = concurrent.futures.wait(active, timeout=1, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    run = active.pop(future)
                    try:
                        record = future.result()
                    except Stopped:
                        continue
                    except (RuntimeError, OSError) as error:
                        wrong += 1
                        print(f"FAILED {run.key}: {error}", flush=True)
                        continue
                    self.results.add(record)
                    slowest = max(slowest, record["seconds"])
                    plt = record["recoveries"][-1]["plt"] if record["recoveries"] else 0.0
                    print(f"{run.key}: held-out loss {record['valid_loss']:.4f}, PLT {100 * plt:.3f} %, "
                          f"{record['seconds']:.0f} s; {len(todo) + len(active)} runs to go", flush=True)
        return wrong


def measured(run, run_dir):
    """What the metrics of a finished run say; RuntimeError if it did not come back where it was meant to."""
    header, *records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    of_kind = lambda kind: [r for r in records if r["kind"] == kind]
    recoveries = of_kind("recovery")
    if tuple(r["step"] for r in recoveries) != run.returns:
        raise RuntimeError(f"recovered at steps {[r['step'] for r in recoveries]} instead of {list(run.returns)}")
    skipped = [r["step"] for r in of_kind("checkpoint") if not r["committed"]]
    if skipped:
        raise RuntimeError(f"the saves of steps {skipped} were not committed")
    losses = {r["step"]: r["loss"] for r in of_kind("step")}  # steps that were trained again: the last time counts
    saved = {r["incarnation"]: r["expert_units"] for r in of_kind("checkpoint")}  # the last save of each start
    valid = of_kind("valid")[-1]
    return {
        "build": header["build"],
        "valid_loss": valid["valid_loss"],
        "valid_bits_per_byte": valid["valid_bits_per_byte"],
        "losses": [losses[step] for step in sorted(losses)],
        "recoveries": [{key: r[key] for key in ("step", "plt", "plt_weights", "lost_slots")} for r in recoveries],
        "k_in_force": [saved[start] // NUM_LAYERS for start in sorted(saved)],
    }


def train(arguments):
    """The part of the program that trains."""
    if not pathlib.Path(f"{arguments.data}_train.bin").exists():
        sys.exit(f"pec_quality: there is no corpus {arguments.data}_train.bin; tools/quickstart prepares it, --data names it")
    os.nice(arguments.nice)
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = Results(arguments.work)
    trainer = Trainer(arguments, results)
    wanted, unknown = {}, []
    for name in arguments.sets:
        runs = runs_of(name, arguments)
        results.require_same(runs, trainer.corpus)
        # The run with most keys is the last of a set.
        if trainer.understands(runs[-1]):
            wanted.update((run.key, run) for run in runs)
        else:
            unknown.append(name)
            print(f"set {name}: left out, as {trainer.bin}/pecan-train does not know all its keys", flush=True)
    todo = [run for run in wanted.values() if not results.get(run)]
    print(f"{len(wanted)} runs, {len(todo)} to train", flush=True)
    try:
        wrong = trainer.train_all(todo)
    except Stopped:
        wrong = 0
    missing = [key for key in wanted if key not in results.of]
    print(f"missing: {len(missing)} of {len(wanted)} runs" + (": " + "; ".join(missing[:10]) if missing else ""), flush=True)
    return 1 if wrong or missing or unknown else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/release/bin"))
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data/kjv"), help="corpus, as pecan-data --output named it")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/quality"), help="folder of the results")
    parser.add_argument("--scratch", type=pathlib.Path, help="folder for run directories while they are needed (default: the system's)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=16, help="seeds 1 to N")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--nice", type=int, default=19)
    parser.add_argument("--budget-minutes", type=float, default=110, help="start no run that would end later")
    parser.add_argument("--quick", action="store_true", help="one failure, 2 seeds, K 1 and 8, one byte mode: about a minute")
    parser.add_argument("--report", type=pathlib.Path, metavar="DIR", help="write DIR/reproduction-quality.md and DIR/figures/, and train nothing")
    arguments = parser.parse_args()
    arguments.budgets, arguments.modes = BUDGETS, tuple(MODES)
    if arguments.quick:
        arguments.sets, arguments.seeds, arguments.budgets, arguments.modes = ["one"], 2, (1, NUM_EXPERTS), ("eq6",)
    return train(arguments)


if __name__ == "__main__":
    sys.exit(main())
