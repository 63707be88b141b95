#!/usr/bin/python3
"""Two options of the mixture of experts at equal tokens: default vectors, and capacities beside dropless experts.

Trains the quickstart's model with each variant of an experiment, seed by seed, in one process of
one thread and without checkpoints: losses after the same tokens. With --time it runs the variants
in turns, a few steps each, for what they cost; run that on a quiet machine.

  tests/bench/moe_options.py capacity --bin build/release/bin --data data/kjv --work runs/options
  tests/bench/moe_options.py capacity --bin build/release/bin --data data/kjv --work runs/options --time
  tests/bench/moe_options.py capacity --work runs/options --report docs

Each finished run is one line of WORK/EXPERIMENT.jsonl, each round of times one of
WORK/EXPERIMENT-times.jsonl; a restart trains only what is missing, and adds rounds. With --report
nothing is trained: the experiment's section is written from what is there.
"""

import argparse
import collections
import hashlib
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "bench"))
import experiment  # noqa: E402
from experiment import ENVIRONMENT, Mean, lines_of, table  # noqa: E402
from e2e import settings  # noqa: E402

CONFIGS = ROOT / "configs"
LAST = 20  # steps that a training loss is the mean of
# Operators and collectives that only default vectors have, as a profile names them; their two products a layer are not told from others.
OF_DEFAULT_VECTORS = re.compile(r"^(?:default_\w+|expert_output_sums|all_reduce default_vectors) +\d+ +(\S+)", re.M)
WARM_UP = 5  # first steps of a start, which take longer
# Variants by name, the one that others are compared with first; options of pecan-train.
EXPERIMENTS = {
    "default-vectors": {
        "top-k": settings("moe.moe_router_pre_softmax=true"),
        "default vectors": ["--config", CONFIGS / "experts" / "default-vectors.yaml"],
    },
    "capacity": {
        "dropless": [],
        **{f"capacity {factor}": settings(f"moe.moe_expert_capacity_factor={factor}") for factor in ("2.0", "1.5", "1.0")},
    },
}


def median_interval(values):
    """The values between which the median lies with 95 % probability at least, by their ranks alone; None for few values."""
    values, count = sorted(values), len(values)
    outside = 0.0
    for skipped in range(count // 2):
        outside += 2 * math.comb(count, skipped) / 2**count
        if outside > 0.05:
            return None if skipped == 0 else (values[skipped - 1], values[-skipped])
    return None


class Experiment:
    """The runs of one experiment; results are lines of files in WORK."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.variants = EXPERIMENTS[arguments.experiment]
        self.base = next(iter(self.variants))
        told = json.dumps([{name: [str(o).removeprefix(str(ROOT)) for o in options] for name, options in self.variants.items()},
                           (CONFIGS / "quickstart.yaml").read_text(), arguments.batch])
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]
        self.results = {(r["seed"], r["variant"]): r for r in self.records("") if r["steps"] == arguments.steps}
        self.rounds = self.records("-times")

    def path(self, kind):
        return self.arguments.work / f"{self.arguments.experiment}{kind}.jsonl"

    def records(self, kind):
        path = self.path(kind)
        found = lines_of(path) if path.exists() else []
        if any(r["fingerprint"] != self.fingerprint for r in found):
            sys.exit(f"moe_options: {path} holds runs of other settings; give those, or another --work folder")
        return found

    def add(self, kind, record):
        with open(self.path(kind), "a", encoding="utf-8") as file:
            file.write(json.dumps({"fingerprint": self.fingerprint, **record}) + "\n")

    def train(self, variant, pairs, *options):
        """Records of a run, with the header as the first, and its profile if there is one."""
        with tempfile.TemporaryDirectory(prefix="pecan-options-") as folder:
            data = self.arguments.data.resolve()
            command = [self.arguments.bin / "pecan-train", "--config", CONFIGS / "quickstart.yaml", *self.variants[variant],
                       "--run-dir", f"{folder}/run",
                       *settings(f"data.data_path={data}_train", f"data.valid_data_path={data}_valid",
                                 f"data.tokenizer_model={data}.tokenizer.model", "parallel.expert_model_parallel_size=1",
                                 f"training.global_batch_size={self.arguments.batch}", "training.threads=1", "checkpoint.save_interval=0",
                                 "logging.level=warn", *pairs), *options]
            done = subprocess.run([str(word) for word in command], env=ENVIRONMENT, text=True, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode != 0:
                sys.exit(f"moe_options: pecan-train ended with exit code {done.returncode}:\n{done.stdout[-2000:]}")
            run_dir = pathlib.Path(folder) / "run"
            profile = run_dir / "profile" / "operators.txt"
            return lines_of(run_dir / "metrics.jsonl"), profile.read_text() if profile.exists() else ""

    def run(self):
        """Trains what is missing, a seed after the other."""
        os.nice(self.arguments.nice)
        for seed in range(1, self.arguments.seeds + 1):
            for variant in self.variants:
                if (seed, variant) in self.results:
                    continue
                (header, *records), _ = self.train(variant, [f"training.seed={seed}", f"training.train_iters={self.arguments.steps}"])
                steps = [r for r in records if r["kind"] == "step"]
                record = {"seed": seed, "variant": variant, "steps": self.arguments.steps, "build": header["build"],
                          "losses": [r["loss"] for r in steps], "dropped": [r["dropped_slots"] for r in steps],
                          "valid": [r["valid_loss"] for r in records if r["kind"] == "valid"][-1]}
                self.add("", record)
                print(f"seed {seed}, {variant}: held-out loss {record['valid']:.4f}", flush=True)

    def time(self):
        """Rounds of short runs, in which each variant has its turn, first and last alternately."""
        last = WARM_UP + self.arguments.timed_steps
        for number in range(self.arguments.rounds):
            times, dropped, shares = {}, {}, {}
            for variant in list(self.variants)[:: -1 if number % 2 else 1]:
                (_, *records), profile = self.train(
                    variant, ["training.seed=1", f"training.train_iters={last}", "data.valid_data_path=''"],
                    "--profile", "--profile-steps", f"{WARM_UP + 1}:{last}")
                timed = [r for r in records if r["kind"] == "step"][WARM_UP:]
                times[variant] = statistics.median(r["step_ms"] for r in timed)
                dropped[variant] = statistics.fmean(r["dropped_slots"] for r in timed)
                seconds, rate = re.search(r"threads: (\S+) s, (\S+) GFLOP/s", profile).groups()
                shares[variant] = {"own": sum(map(float, OF_DEFAULT_VECTORS.findall(profile))) / float(seconds),
                                   "gflop": float(seconds) * float(rate) / self.arguments.timed_steps}
            self.add("-times", {"step_ms": times, "dropped": dropped, "profile": shares})
            print(f"round {number + 1}: " + ", ".join(f"{v} {times[v]:.2f} ms" for v in self.variants), flush=True)

    # -- The report

    def report(self):
        seeds = [s for s in range(1, self.arguments.seeds + 1) if all((s, v) in self.results for v in self.variants)]
        if len(seeds) < 2:
            sys.exit(f"moe_options: {self.path('')} has less than two seeds with all runs; nothing to report")
        title, text = getattr(self, self.arguments.experiment.replace("-", "_"))(seeds)
        page = experiment.write_section(self.arguments.report, title, f"## {title}\n\n{text}")
        print(f"wrote the section {title} of {page}")

    def commands(self):
        sizes = f"--seeds {self.arguments.seeds} --steps {self.arguments.steps}"
        rest = f"{self.arguments.experiment} --bin build/release/bin --data data/kjv --work runs/options"
        return f"""```
tests/bench/moe_options.py {rest} {sizes}     # losses; resumable
tests/bench/moe_options.py {rest} --time --rounds {len(self.rounds)}     # times
tests/bench/moe_options.py {self.arguments.experiment} --work runs/options {sizes} --report docs     # this section
```"""

    def setting(self, seeds):
        tokens = self.arguments.batch * 256
        builds = sorted({self.results[s, v]["build"] for s in seeds for v in self.variants})
        return (f"The model of `configs/quickstart.yaml` (4 layers of 16 experts, top-2) in one process of one thread, {self.arguments.steps} steps of {tokens} tokens of the King "
                f"James Bible, {len(seeds)} seeds; the runs of a\nseed differ in nothing else. Losses in nats a token, differences by seed with 95 % intervals of Student's t; "
                f"training losses are means of the last {LAST} steps. Trained by\n{', '.join(builds)}.")

    def losses(self, seeds, key):
        """Of each variant, by seed."""
        return {v: [key(self.results[s, v]) for s in seeds] for v in self.variants}

    def loss_cells(self, seeds):
        """By variant: both losses, each with its difference to the base."""
        cells = collections.defaultdict(list)
        for key in (lambda r: statistics.fmean(r["losses"][-LAST:]), lambda r: r["valid"]):
            losses = self.losses(seeds, key)
            for variant, values in losses.items():
                cells[variant] += [f"{statistics.fmean(values):.4f} (σ {statistics.stdev(values):.4f})",
                                   "-" if variant == self.base else Mean.over([a - b for a, b in zip(values, losses[self.base])])]
        return cells

    def time_cells(self):
        """By variant: step time, and its ratio to that of the base."""
        cells = {}
        for variant in self.variants:
            if not self.rounds:
                cells[variant] = ["not measured", "-"]
                continue
            times = [r["step_ms"] for r in self.rounds]
            ratios = [t[variant] / t[self.base] for t in times]
            interval = median_interval(ratios)
            ratio = f"{statistics.median(ratios):.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")
            cells[variant] = [f"{statistics.median(t[variant] for t in times):.2f}", "-" if variant == self.base else ratio]
        return cells

    def rounds_told(self):
        return (f"Step times are medians of {len(self.rounds)} rounds of short runs in turns, ratios medians of those of each round, with the range in which the median lies with "
                "95 % probability (wide where other work shares the machine).")

    def table(self, seeds, more=None):
        losses, times = self.loss_cells(seeds), self.time_cells()
        heads = ["variant", *([more[0]] if more else []), "training loss", f"minus {self.base}", "held-out loss", f"minus {self.base}", "step, ms",
                 f"over {self.base}"]
        return table(heads, [[v, *([more[1][v]] if more else []), *losses[v], *times[v]] for v in self.variants])

    def default_vectors(self, seeds):
        profiles = [r["profile"] for r in self.rounds if "profile" in r]
        own = sorted(100 * p["default vectors"]["own"] for p in profiles)
        cost = "" if not own else (
            f" In profiles of {len(own)} of these rounds the operators and the collective that only\ndefault vectors have take {statistics.median(own):.2f} % of the step "
            f"({own[0]:.2f} to {own[-1]:.2f} %); their two products a layer and micro-batch, which a profile does not tell from others, are "
            f"{100 * statistics.median(p['default vectors']['gflop'] / p['top-k']['gflop'] - 1 for p in profiles):.2f} % more flops.")
        return "Default vectors", f"""What default vectors (Default MoE, arXiv 2504.12463) change at equal tokens, and what they cost:

{self.commands()}

{self.setting(seeds)} Both variants take the softmax over all experts before the top-k, as default vectors need it; the vectors are those of
`configs/experts/default-vectors.yaml`.

{self.table(seeds)}

{self.rounds_told()}{cost} The paper states 0.2 to 1.9 % of throughput, of larger models on GPUs.

Limits: a small model early in its training, one beta, and a learning rate that was chosen for plain top-k; the paper's gains are those of long training."""

    def capacity(self, seeds):
        slots = self.arguments.batch * 256 * 4 * 2
        dropped = self.losses(seeds, lambda r: statistics.fmean(r["dropped"]) / slots)
        last = self.losses(seeds, lambda r: statistics.fmean(r["dropped"][-LAST:]) / slots)
        timed = "".join(f"{', ' if i else ': '}{100 * statistics.fmean(r['dropped'][v] for r in self.rounds) / slots:.1f} % are dropped with {v}"
                        for i, v in enumerate(list(self.variants)[1:])) if self.rounds else ""
        shares = {v: f"{100 * statistics.fmean(dropped[v]):.2f} %, {100 * statistics.fmean(last[v]):.2f} %" for v in self.variants}
        return "Dropless experts and capacities", f"""What it costs and gains to drop no token (MegaBlocks, arXiv 2211.15841), beside experts that take at most a multiple of an even share of a micro-batch:

{self.commands()}

{self.setting(seeds)} A micro-batch has 1024 tokens; an expert over its capacity keeps the most probable. Held-out losses are evaluated with
the capacity that the run was trained with. Dropped: share of the token-slots, of all steps and of the last {LAST}.

{self.table(seeds, ("dropped", shares))}

{self.rounds_told()} They are of the first steps of a run, where routing is
least even{timed}."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/release/bin"))
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data/kjv"), help="corpus, as pecan-data --output named it")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/options"), help="folder of the results")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=4, help="sequences of 256 tokens a step, a multiple of 4")
    parser.add_argument("--nice", type=int, default=19, help="of the training for losses")
    parser.add_argument("--time", action="store_true", help="measure step times, at this process's own priority")
    parser.add_argument("--rounds", type=int, default=20, help="of --time")
    parser.add_argument("--timed-steps", type=int, default=20, help="of each short run of --time, after the first five")
    parser.add_argument("--report", type=pathlib.Path, metavar="DIR", help="write the experiment's section of DIR/reproduction.md, and train nothing")
    arguments = parser.parse_args()
    if arguments.report is None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    runs = Experiment(arguments)
    if arguments.report:
        runs.report()
    elif arguments.time:
        runs.time()
    else:
        runs.run()


if __name__ == "__main__":
    main()
