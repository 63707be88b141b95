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
import fcntl
import hashlib
import json
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

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import experiment  # noqa: E402
from experiment import ENVIRONMENT, Mean, lines_of, table  # noqa: E402

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
FAULT_FREE, NUDGED = "fault-free", "K=8 nudged"
# Changes nothing but roundings: what it does to the loss is the noise of a pair.
NUDGE = "optimizer.adam_eps=1.01e-8"


# ----------------------------------------------------------------------------------------------
# The runs


def kill_after(interval):
    """The step, counted from a save, at whose beginning a failure comes that goes back to it: half-way to the next save."""
    return interval // 2 + 1


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
    interval: int = INTERVAL  # steps between saves

    @property
    def key(self):
        return f"{self.set}, {self.variant}, seed {self.seed}"

    @property
    def kills(self):
        """The steps at whose beginning the process is killed, one for each start but the last."""
        return tuple(step + kill_after(self.interval) for step in self.returns)

    @property
    def in_memory(self):
        """Whether snapshots stay in memory, which outlives the process: they need a folder that is removed afterwards."""
        return any("non_persistent_save_interval" in setting for setting in self.settings)

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
            Run("budget", "K=1", seed, settings_of(LONG_STEPS, LONG_INTERVAL, 1), LONG_RETURNS, 1, "eq6",
                interval=LONG_INTERVAL),
            Run("budget", "Dynamic-K", seed, settings_of(LONG_STEPS, LONG_INTERVAL, 1, more=dynamic), LONG_RETURNS, 1, "eq6",
                interval=LONG_INTERVAL)]


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
        self.of = {record["key"]: record for record in lines_of(self.path)} if self.path.exists() else {}
        self.file = None

    def open(self):
        """Makes ready for `add`; ends the program if another one trains into the same folder."""
        self.file = open(self.path, "a", encoding="utf-8")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"pec_quality: another one trains into {self.path}; wait for it, or use another --work folder")
        if not self.path.read_text().endswith("\n"):  # the last line may be cut short
            self.file.write("\n")

    def add(self, record):
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
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
        for number in (signal.SIGINT, signal.SIGTERM):
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

    def call(self, command, log, temporary="/tmp"):
        """Exit code of a program that writes to the file `log`; a signal counts as 128 + its number, as in a shell.

        What Open MPI leaves behind after a kill goes to the folder `temporary`.
        """
        with self.lock:
            if self.stopping:
                raise Stopped
            child = subprocess.Popen(command, env={**ENVIRONMENT, "TMPDIR": str(temporary)}, stdin=subprocess.DEVNULL,
                                     stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
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
        return self.call([*self.command(run, *(["fault.inject=[kill step=1]"] if run.kills else [])), "--dump-config"], subprocess.DEVNULL) == 0

    def train(self, run):
        """Trains one run with all its failures and returns its result; RuntimeError if it did not go as planned."""
        began = time.monotonic()
        folder = pathlib.Path(tempfile.mkdtemp(prefix="pecan-quality-", dir=self.scratch))
        memory = pathlib.Path(tempfile.mkdtemp(prefix="pecan-quality-", dir="/dev/shm")) if run.in_memory else None
        try:
            run_dir = folder / "run"
            for start in range(len(run.kills) + 1):
                kill = run.kills[start] if start < len(run.kills) else 0
                options = list(run.later) if start > 0 else []
                if memory:
                    options.append(f"checkpoint.memory_dir={memory}")
                if kill:
                    options.append(f"fault.inject=[kill step={kill} start={start}]")
                with open(folder / "log", "w", encoding="utf-8") as log:
                    code = self.call([*self.command(run, *options), "--run-dir", str(run_dir),
                                      *(["--resume-from-failure"] if start > 0 else [])], log, folder)
                expected = 128 + signal.SIGKILL if kill else 0
                if code != expected:
                    raise RuntimeError(f"start {start} ended with exit code {code} instead of {expected}: "
                                       + (folder / "log").read_text()[-2000:])
            return {"key": run.key, "fingerprint": run.fingerprint, "corpus": self.corpus,
                    **measured(run, run_dir), "seconds": round(time.monotonic() - began, 1)}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if memory:
                shutil.rmtree(memory, ignore_errors=True)

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
    header, *records = lines_of(run_dir / "metrics.jsonl")
    of_kind = lambda kind: [r for r in records if r["kind"] == kind]
    recoveries = of_kind("recovery")
    if tuple(r["step"] for r in recoveries) != run.returns:
        raise RuntimeError(f"recovered at steps {[r['step'] for r in recoveries]} instead of {list(run.returns)}")
    skipped = [r["step"] for r in of_kind("checkpoint") + of_kind("snapshot") if not r["committed"]]
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
    results.open()
    trainer = Trainer(arguments, results)
    try:
        return train_sets(arguments, results, trainer)
    except Stopped:
        print("stopped; the next start goes on from here", flush=True)
        return 1


def train_sets(arguments, results, trainer):
    """Trains the sets asked for as far as they are missing and understood; returns the exit code."""
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
    wrong = trainer.train_all(todo)
    missing = [key for key in wanted if key not in results.of]
    print(f"missing: {len(missing)} of {len(wanted)} runs" + (": " + "; ".join(missing[:10]) if missing else ""), flush=True)
    return 1 if wrong or missing or unknown else 0


# ----------------------------------------------------------------------------------------------
# The report

def paired(some, others):
    """Mean of the differences of two tables by seed."""
    return Mean.over([some[seed] - others[seed] for seed in sorted(some.keys() & others.keys())])


def closed_form(faults, k, interval, steps):
    """PLT of even routing and selection in turn."""
    return faults * (NUM_EXPERTS / k - 1) / 2 * interval / steps


def percent(share, digits=2):
    return f"{100 * share:.{digits}f} %"


def listed(words):
    words = list(words)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


class Pairs:
    """The runs of one variant of a set, each with the run of its seed that did not fail."""

    def __init__(self, results, runs, variant):
        self.pairs = []
        for run in runs:
            if run.variant != variant:
                continue
            twin = next(r for r in runs if r.variant == FAULT_FREE and r.seed == run.seed)
            if results.get(run) and results.get(twin):
                self.pairs.append((run, results.get(run), results.get(twin)))

    def __len__(self):
        return len(self.pairs)

    @property
    def differences(self):
        """Held-out loss minus that without failure, by seed."""
        return {run.seed: failed["valid_loss"] - free["valid_loss"] for run, failed, free in self.pairs}

    @property
    def held_out(self):
        return Mean.over(list(self.differences.values()))

    @property
    def after_failure(self):
        """The same of the training loss over the INTERVAL steps after each failure."""
        def mean(run, losses):
            return statistics.fmean(losses[step + i] for step in run.returns for i in range(INTERVAL))
        return Mean.over([mean(run, failed["losses"]) - mean(run, free["losses"]) for run, failed, free in self.pairs])

    def plt(self, key="plt", fault=-1):
        return Mean.over([failed["recoveries"][fault][key] for _, failed, _ in self.pairs])

    @property
    def identical(self):
        """Runs whose losses, of every step and held-out, equal those without failure to the last bit."""
        return sum(all(failed[key] == free[key] for key in ("losses", "valid_loss")) for _, failed, free in self.pairs)


class Report:
    """Tables, figures and sentences from the results of the sets."""

    def __init__(self, arguments, results):
        self.folder = arguments.report
        self.results = results
        self.runs = {name: runs_of(name, arguments) for name in SETS}
        for runs in self.runs.values():
            results.require_same(runs)
        self.sigma_runs = [results.get(run) for run in self.runs["one"] if run.variant == FAULT_FREE and results.get(run)]
        if len(self.sigma_runs) < 2:
            sys.exit(f"pec_quality: {results.path} has less than two runs without failure; nothing to report")
        self.sigma = statistics.stdev(r["valid_loss"] for r in self.sigma_runs)

    def pairs(self, name, variant):
        return Pairs(self.results, self.runs[name], variant)

    def missing(self, name):
        return [run.key for run in self.runs[name] if not self.results.get(run)]

    def write(self):
        self.failures = {name: {(k, mode): pairs for k in BUDGETS for mode in MODES
                                if len(pairs := self.pairs(name, variant_of(k, mode))) > 1 and (k < NUM_EXPERTS or mode == "eq6")}
                         for name in TITLES}
        self.failures = {name: cells for name, cells in self.failures.items() if cells}
        parts = [self.introduction(), *(self.failure_set(name) for name in self.failures), self.findings(),
                 self.memory(), self.budget(), self.gaps()]
        text = "\n\n".join(part.strip() for part in parts if part) + "\n"
        page = experiment.write_section(self.folder, "Quality", text)
        builds = sorted({record["build"] for record in self.results.of.values()})
        print(f"wrote the section Quality of {page}; trained by {listed(builds)}")

    # -- Figures

    def figure(self, name, panels, draw, width):
        """Draws `panels` side by side into figures/NAME.svg, the same bytes for the same results."""
        pyplot = experiment.pyplot()
        figure, axes = pyplot.subplots(1, panels, figsize=(width, 3.6), squeeze=False)
        draw(axes[0])
        experiment.save_figure(figure, self.folder, name)

    def draw_failures(self, axes):
        for panel, (name, cells) in zip(axes, self.failures.items()):
            panel.axhspan(-self.sigma, self.sigma, color="0.92", label="± σ over seeds")
            panel.axhline(0, color="0.5", linewidth=0.8)
            panel.axvline(100 * PLT_BUDGET, color="0.5", linewidth=0.8, linestyle=":", label="3.75 % PLT")
            for (mode, color, marker), shift in zip((("eq6", "C3", "o"), ("master_full", "C0", "s"), ("weights_full", "C2", "^")),
                                                    (-0.1, 0, 0.1)):
                points = [(pairs.plt().of, pairs.held_out) for (k, of), pairs in cells.items() if of == mode or k == NUM_EXPERTS]
                points.sort(key=lambda point: point[0])
                panel.errorbar([100 * x + shift for x, _ in points], [y.of for _, y in points], [y.half for _, y in points],
                               color=color, marker=marker, markersize=4, capsize=3, linewidth=1, label=mode)
            panel.set_title(TITLES[name])
            panel.set_xlabel("measured PLT, %")
        axes[0].set_ylabel("held-out loss minus without failure, nats")
        axes[0].legend(fontsize=8)

    def draw_memory(self, axes):
        panel, = axes
        measured = [(k, self.pairs("memory", f"K_snapshot={k}").plt()) for k in BUDGETS]
        panel.plot(BUDGETS, [100 * closed_form(1, k, INTERVAL, STEPS) for k in BUDGETS], color="0.5", linestyle="--",
                   label="closed form: memory keeps every expert")
        panel.axhline(100 * closed_form(1, 1, 2 * INTERVAL, STEPS), color="0.5", linestyle=":", label="closed form: storage alone")
        panel.errorbar([k for k, _ in measured], [100 * m.of for _, m in measured], [100 * m.half for _, m in measured],
                       color="C0", marker="o", markersize=4, capsize=3, linewidth=1, label="measured")
        panel.set_xscale("log", base=2)
        panel.set_xticks(BUDGETS, [str(k) for k in BUDGETS])
        panel.set_xlabel("K_snapshot, experts of a layer in a snapshot")
        panel.set_ylabel("PLT, %")
        panel.legend(fontsize=8)

    def draw_budget(self, axes):
        left, right = axes
        for variant, color, marker in (("K=1", "C3", "o"), ("Dynamic-K", "C0", "s")):
            pairs = self.pairs("budget", variant)
            faults = range(1, len(LONG_RETURNS) + 1)
            left.plot(faults, [100 * pairs.plt(fault=i - 1).of for i in faults], color=color, marker=marker, markersize=3, linewidth=1,
                      label=variant)
            for _, failed, _ in pairs.pairs:
                right.step(range(len(LONG_RETURNS) + 1), failed["k_in_force"], where="post", color=color, linewidth=1, alpha=0.6)
        left.axhline(100 * PLT_BUDGET, color="0.5", linewidth=0.8, linestyle=":", label="budget")
        left.set_xlabel("failures")
        left.set_ylabel("accumulated PLT, %")
        left.legend(fontsize=8)
        right.set_xlabel("failures")
        right.set_ylabel("K in force, a line a seed")
        right.set_yticks(BUDGETS)

    # -- Text

    def introduction(self):
        losses = Mean.over([r["valid_loss"] for r in self.sigma_runs])
        return f"""
## Quality

What failures cost the model whose experts are saved in turn, on the King James Bible as `tools/quickstart` prepares it:

```
tools/install-dependencies bench
tests/bench/pec_quality.py --bin build/release/bin --data data/kjv --work runs/quality     # resumable; --quick: a minute
tests/bench/pec_quality.py --work runs/quality --report docs                               # the tables and figures below
```

The first takes about an hour on two cores that do nothing else.

**Setting.** {NUM_LAYERS} MoE layers of {NUM_EXPERTS} experts (top-2, hidden 64, expert FFN 128), vocabulary 4096, bf16 with fp32 masters, one process; {STEPS} steps of
512 tokens, a save every {INTERVAL} steps, experts in turn. The process is killed by SIGKILL when step t + {kill_after(INTERVAL)} begins, t being a step that was saved, and
started again with `--resume-from-failure`. Saves wait for their files (`async_save: false`), so that what is saved does not depend on the
machine's speed. A run with failures differs from its partner without in nothing else: seed, initial weights, data and schedule are the same.
With {NUM_EXPERTS} experts, an interval of {INTERVAL} and {STEPS} steps the closed form `PLT = faults * (N/K - 1)/2 * interval/steps` gives the paper's proportions for one failure:
8.75, 3.75 and 1.25 % for K = 1, 2, 4.

**Byte modes.** `eq6`: an expert that is not chosen is not saved at all (`always_saved: []`). `master_full`: its fp32 master is in every
checkpoint (`[master]`), so that only its moments become stale. `weights_full`: its bf16 weight is (`[weight]`), from which the master is made again.

**Without failure** the held-out loss is {losses.of:.4f} nats a token, mean of {losses.count} seeds; its standard deviation over seeds, σ, is {self.sigma:.4f}. Intervals
below are 95 % intervals of Student's t over seeds; those of differences are of paired differences."""

    def failure_set(self, name):
        cells = self.failures[name]
        returns = next(iter(cells.values())).pairs[0][0].returns
        rows = []
        for (k, mode), pairs in cells.items():
            held_out, after = pairs.held_out, pairs.after_failure
            rows.append([k, mode if k < NUM_EXPERTS else "(all)", held_out, f"{held_out.of / self.sigma:+z.2f}", after, percent(pairs.plt().of),
                         percent(closed_form(len(returns), k, INTERVAL, STEPS)), percent(pairs.plt("plt_weights").of), len(pairs)])
        noise = self.pairs(name, NUDGED)
        if len(noise) > 1:
            rows.append([NUM_EXPERTS, "(all), nudged", noise.held_out, f"{noise.held_out.of / self.sigma:+z.2f}", noise.after_failure,
                         percent(noise.plt().of), "0.00 %", percent(noise.plt("plt_weights").of), len(noise)])
        heads = ["K", "byte mode", "held-out loss minus without failure", "in σ",
                 f"training loss of the {INTERVAL} steps after a failure, minus without",
                 "PLT measured", "closed form", "PLT of weights", "seeds"]
        return f"""
### {TITLES[name]}

{'The failure goes back to step' if len(returns) == 1 else 'The failures go back to steps'} {listed(map(str, returns))}.

{table(heads, rows)}"""

    def findings(self):
        if not self.failures:
            return ""
        self.figure("quality-plt", len(self.failures), self.draw_failures, 4.6 * len(self.failures))
        facts = "\n".join(f"* {TITLES[name]}{fact}" for name in self.failures for fact in self.facts(name))
        return f"""
### What it shows

![Held-out loss minus that without failure, against measured PLT](figures/quality-plt.svg)

{facts}

Assumptions and limits: a small model early in its training, whose loss still falls steeply, so that lost updates may weigh more, and
may be made good sooner, than late in a long training; held-out loss of one text, no downstream tasks; failures at fixed steps with at least one
full rotation before each; one process, so that every expert is thrown back. Of twenty such intervals one misses by chance. The MoC paper reports a validation loss of 4.8851 without failure and 4.8808 to 4.8856 while
PLT is below 3.75 %, for another model and text and without intervals: these numbers neither repeat nor refute it."""

    def facts(self, name):
        """Sentences about a set of failures, each the continuation of its title."""
        cells = self.failures[name]
        partial = {key: pairs.held_out for key, pairs in cells.items() if key[0] < NUM_EXPERTS}
        named = lambda keys: listed(f"K = {k} {mode}" for k, mode in keys)
        for where, kept in (("above zero", [key for key, mean in partial.items() if mean.of > mean.half]),
                            ("below zero", [key for key, mean in partial.items() if mean.of < -mean.half]),
                            ("on both sides of zero", [key for key, mean in partial.items() if abs(mean.of) <= mean.half])):
            if kept:
                yield f": the interval lies {where} for {named(kept)}."
        largest = max(partial, key=lambda key: partial[key].of)
        yield f": the largest mean difference is {partial[largest].of:+.4f} ({named([largest])}), {partial[largest].of / self.sigma:.2f} σ."
        faults = {key: len(pairs.pairs[0][0].returns) for key, pairs in cells.items()}
        if below := [partial[k, mode].of for k, mode in partial if closed_form(faults[k, mode], k, INTERVAL, STEPS) <= PLT_BUDGET]:
            yield f": where the closed form is at most {percent(PLT_BUDGET)}, mean differences lie between {min(below):+.4f} and {max(below):+.4f}."
        for k in BUDGETS[:-1]:
            compared = [f"{mode} {paired(cells[k, mode].differences, cells[k, 'eq6'].differences)}"
                        for mode in MODES if mode != "eq6" and (k, mode) in cells and (k, "eq6") in cells]
            if compared:
                yield f", K = {k}, held-out loss minus that of eq6 at about the same PLT: {listed(compared)}."
        if control := cells.get((NUM_EXPERTS, "eq6")):
            yield (f", control: with K = {NUM_EXPERTS} everything is saved, and {control.identical} of {len(control)} runs repeat the loss of every "
                   "step and the held-out loss of the run without failure to the last bit.")
        if len(noise := self.pairs(name, NUDGED)) > 1:
            yield (f", noise: a change of nothing but roundings after the restart (K = {NUM_EXPERTS}, `adam_eps` from 1e-8 to "
                   "1.01e-8: \"nudged\") moves the held-out loss with a standard deviation of "
                   f"{statistics.stdev(noise.differences.values()):.4f}.")

    def memory(self):
        cells = {k: pairs for k in BUDGETS if len(pairs := self.pairs("memory", f"K_snapshot={k}")) > 1}
        if len(cells) < len(BUDGETS):
            return ""
        self.figure("quality-snapshot", 1, self.draw_memory, 4.6)
        rows = [[k, f"{percent(pairs.plt().of)} ± {percent(pairs.plt().half)}", percent(closed_form(1, k, INTERVAL, STEPS)),
                 pairs.held_out, len(pairs)] for k, pairs in cells.items()]
        heads = ["K_snapshot", "PLT measured", "closed form, memory keeps every expert", "held-out loss minus without failure", "seeds"]
        return f"""
### PLT against K_snapshot

One expert of a layer in each checkpoint in storage (every {2 * INTERVAL} steps), K_snapshot in each snapshot in memory (every {INTERVAL}), byte mode eq6. The process is killed
{kill_after(INTERVAL)} steps after a snapshot that storage does not have; memory survives it, as a process that dies on a healthy node leaves it (figure 15a of the
MoC paper). Memory holds three snapshots at most: an expert that is in none of them comes from storage. The measured PLT therefore lies between the closed form of a
memory that keeps the newest snapshot of every expert and that of storage alone, {percent(closed_form(1, 1, 2 * INTERVAL, STEPS))} whatever K_snapshot is (with which {INTERVAL} more steps would be trained again).

{table(heads, rows)}

![PLT against K_snapshot](figures/quality-snapshot.svg)"""

    def budget(self):
        fixed, dynamic = self.pairs("budget", "K=1"), self.pairs("budget", "Dynamic-K")
        if len(fixed) < 2 or len(dynamic) < 2:
            return ""
        self.figure("quality-dynamic-k", 2, self.draw_budget, 8.4)
        rows = []
        for i, step in enumerate(LONG_RETURNS):
            in_force = sorted({failed["k_in_force"][i + 1] for _, failed, _ in dynamic.pairs})
            rows.append([i + 1, step, percent(fixed.plt(fault=i).of), percent(closed_form(i + 1, 1, LONG_INTERVAL, LONG_STEPS)),
                         percent(dynamic.plt(fault=i).of), " or ".join(map(str, in_force))])
        heads = ["failure", "back to step", "PLT, K = 1", "closed form, K = 1", "PLT, Dynamic-K", "K in force after it"]
        last = dynamic.plt().of
        reached = [next((i for i, k in enumerate(failed["k_in_force"]) if k == NUM_EXPERTS), None) for _, failed, _ in dynamic.pairs]
        full = (f"K reaches {NUM_EXPERTS} after failure {' or '.join(map(str, sorted(set(reached))))}: from then on every checkpoint is full, and nothing is "
                "lost or gained by PEC. " if None not in reached else "")
        return f"""
### Dynamic-K over {len(LONG_RETURNS)} failures

{LONG_STEPS} steps, a save every {LONG_INTERVAL}, byte mode eq6, {len(dynamic)} seeds (means): K = 1 throughout, and Dynamic-K with the budget of {percent(PLT_BUDGET)} from K = 1 (figure 15b of the MoC paper).

{table(heads, rows)}

![Accumulated PLT and K in force after each failure](figures/quality-dynamic-k.svg)

After {len(LONG_RETURNS)} failures K = 1 has lost {percent(fixed.plt().of)} and Dynamic-K {percent(last)}, which is {"within" if last <= PLT_BUDGET else "above"} the budget. {full}Held-out loss
minus that without failure: K = 1 {fixed.held_out}, Dynamic-K {dynamic.held_out} ({len(dynamic)} seeds)."""

    def gaps(self):
        lines = [f"* {name}: {len(missing)} of {len(self.runs[name])} runs" for name in SETS if (missing := self.missing(name))]
        return "### Not measured\n\n" + "\n".join(lines) if lines else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/release/bin"))
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data/kjv"), help="corpus, as pecan-data --output named it")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/quality"), help="folder of the results")
    parser.add_argument("--scratch", type=pathlib.Path, help="folder for run directories while they are needed (default: the system's)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=12, help="seeds 1 to N")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--nice", type=int, default=19)
    parser.add_argument("--budget-minutes", type=float, default=110, help="start no run that would end later")
    parser.add_argument("--quick", action="store_true", help="one failure, 2 seeds, K 1 and 8, one byte mode: about a minute")
    parser.add_argument("--report", type=pathlib.Path, metavar="DIR", help="write the section Quality of DIR/reproduction.md and DIR/figures/, and train nothing")
    arguments = parser.parse_args()
    arguments.budgets, arguments.modes = BUDGETS, tuple(MODES)
    if arguments.quick:
        arguments.sets, arguments.seeds, arguments.budgets, arguments.modes = ["one"], 2, (1, NUM_EXPERTS), ("eq6",)
    if arguments.report:
        return Report(arguments, Results(arguments.work)).write()
    return train(arguments)


if __name__ == "__main__":
    sys.exit(main())
