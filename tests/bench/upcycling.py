#!/usr/bin/python3
"""Does a mixture of experts learn faster from a dense model than from nothing? The upcycling experiment.

Trains a small dense model on the quickstart's corpus, makes mixtures of experts of it with several
shares of redrawn neurons (pecan-convert upcycle), and trains each, and one from scratch, on the same
tokens with the same settings. Runs of a seed share data, dense model and schedule.

  tests/bench/upcycling.py --bin build/release/bin --data data/kjv --work runs/upcycling
  tests/bench/upcycling.py --work runs/upcycling --report docs

Each finished run is one line of WORK/results.jsonl, and a restart trains only what is missing. With
--report nothing is trained: the table and the figure are written from what is there.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import experiment  # noqa: E402
from experiment import ENVIRONMENT, Mean, lines_of, table  # noqa: E402
from e2e import settings  # noqa: E402

CONFIG = """
model: {num_layers: LAYERS, hidden_size: HIDDEN, ffn_hidden_size: FFN, num_attention_heads: 4, num_query_groups: 2,
        qk_layernorm: true}
training: {bf16: true, seq_length: SEQUENCE, micro_batch_size: BATCH, global_batch_size: BATCH, threads: 1,
           eval_interval: EVERY}
optimizer: {lr: 0.002, min_lr: 0.0002, lr_warmup_iters: 20, lr_decay_style: cosine, weight_decay: 0.1,
            adam_beta2: 0.95, clip_grad: 1.0}
data: {data_path: DATA_train, valid_data_path: DATA_valid, tokenizer_model: DATA.tokenizer.model}
checkpoint: {keep_latest_k: 1, fallback_copies: 0, async_save: false}
logging: {log_interval: 100, level: warn}
"""
MOE = """
moe: {num_experts: EXPERTS, moe_ffn_hidden_size: FFN, moe_router_topk: 2, moe_layer_freq: 1, moe_aux_loss_coeff: 0.01,
      moe_z_loss_coeff: 0.001}
"""
SCRATCH = "scratch"
SIZES = ("layers", "hidden", "ffn", "experts", "sequence", "batch", "every")


def name_of(ratio):
    return f"r = {ratio:g}"


class Experiment:
    """The runs of all seeds; results are lines of WORK/results.jsonl."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.path = arguments.work / "results.jsonl"
        self.writing = threading.Lock()
        self.results = {(r["seed"], r["variant"]): r for r in lines_of(self.path)} if self.path.exists() else {}
        told = json.dumps([CONFIG, MOE, *(getattr(arguments, size) for size in SIZES), arguments.dense_steps, arguments.steps])
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]
        if any(r["fingerprint"] != self.fingerprint for r in self.results.values()):
            sys.exit(f"upcycling: {self.path} holds runs of other sizes; give those, or another --work folder")

    @property
    def variants(self):
        return [SCRATCH, *(name_of(ratio) for ratio in self.arguments.ratios)]

    def configuration(self, folder, name, text):
        for size in SIZES:
            text = text.replace(size.upper(), str(getattr(self.arguments, size)))
        path = folder / name
        path.write_text(text.replace("DATA", str(self.arguments.data.resolve())))
        return path

    def call(self, program, *words):
        done = subprocess.run([str(self.arguments.bin / program), *map(str, words)], env=ENVIRONMENT, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise RuntimeError(f"{program} ended with exit code {done.returncode}:\n{done.stdout[-2000:]}")

    def train(self, config, run_dir, seed, steps, *options):
        self.call("pecan-train", "--config", config, "--run-dir", run_dir,
                  *settings(f"training.seed={seed}", f"training.train_iters={steps}", "checkpoint.save_interval=1000000"),
                  *options)

    def add(self, seed, variant, run_dir):
        header, *records = lines_of(run_dir / "metrics.jsonl")
        of_kind = lambda kind: [r for r in records if r["kind"] == kind]
        record = {"seed": seed, "variant": variant, "fingerprint": self.fingerprint, "build": header["build"],
                  "losses": [r["loss"] for r in of_kind("step")],
                  "valid": [[r["step"], r["valid_loss"]] for r in of_kind("valid")]}
        with self.writing, open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            self.results[seed, variant] = record
        print(f"seed {seed}, {variant}: held-out loss {record['valid'][-1][1]:.4f}", flush=True)

    def run(self):
        """Trains what is missing, some seeds side by side."""
        if not pathlib.Path(f"{self.arguments.data}_train.bin").exists():
            sys.exit(f"upcycling: there is no corpus {self.arguments.data}_train.bin; tools/quickstart prepares it, --data names it")
        os.nice(self.arguments.nice)
        with concurrent.futures.ThreadPoolExecutor(self.arguments.jobs) as pool:
            for _ in pool.map(self.run_missing, range(1, self.arguments.seeds + 1)):
                pass

    def run_missing(self, seed):
        missing = [v for v in ["dense", *self.variants] if (seed, v) not in self.results]
        if missing:
            with tempfile.TemporaryDirectory(prefix="pecan-upcycling-", dir=self.arguments.scratch) as folder:
                self.run_seed(pathlib.Path(folder), seed, missing)

    def run_seed(self, folder, seed, missing):
        dense_config = self.configuration(folder, "dense.yaml", CONFIG)
        config = self.configuration(folder, "moe.yaml", CONFIG + MOE)
        dense = folder / "dense"
        self.train(dense_config, dense, seed, self.arguments.dense_steps)
        if "dense" in missing:
            self.add(seed, "dense", dense)
        steps = self.arguments.steps
        # Other data than the dense model has seen first: the order follows from the seed.
        after = seed + 1000
        if SCRATCH in missing:
            self.train(config, folder / SCRATCH, after, steps)
            self.add(seed, SCRATCH, folder / SCRATCH)
        for ratio in self.arguments.ratios:
            if name_of(ratio) not in missing:
                continue
            run_dir = folder / f"upcycled-{ratio:g}"
            self.call("pecan-convert", "upcycle", "--from", dense, "--config", config, "--out", run_dir,
                      "--drop-ratio", ratio, "--seed", seed)
            self.train(config, run_dir, after, steps, "--resume-from-failure")
            self.add(seed, name_of(ratio), run_dir)

    # -- The report

    def report(self):
        whole = [seed for seed in range(1, self.arguments.seeds + 1)
                 if all((seed, v) in self.results for v in ["dense", *self.variants])]
        if not whole:
            sys.exit(f"upcycling: {self.path} has no seed with all runs; nothing to report")
        curves = {v: [self.results[seed, v] for seed in whole] for v in ["dense", *self.variants]}
        self.draw(curves)
        page = experiment.write_section(self.arguments.report, "Upcycling", self.text(curves, whole))
        print(f"wrote the section Upcycling of {page}")

    def text(self, curves, seeds):
        a = self.arguments
        sizes = f"--seeds {a.seeds} --dense-steps {a.dense_steps} --steps {a.steps}"
        steps = [step for step, _ in curves[SCRATCH][0]["valid"]]
        shown = [step for step in steps if step in steps[::max(1, len(steps) // 8)] or step == steps[-1]]
        tokens = a.batch * a.sequence

        def at(variant, step):
            return Mean.over([dict(map(tuple, r["valid"]))[step] for r in curves[variant]])

        def cell(mean):
            return f"{mean.of:.4f}" + (f" ± {mean.half:.4f}" if mean.count > 1 else "")
        rows = [[step, f"{step * tokens:,}", *(cell(at(v, step)) for v in self.variants)] for step in shown]
        dense = Mean.over([r["valid"][-1][1] for r in curves["dense"]])
        final = {v: {seed: r["valid"][-1][1] for seed, r in zip(seeds, curves[v])} for v in self.variants}
        facts = [f"* {v} minus scratch at the end: {Mean.over([final[v][s] - final[SCRATCH][s] for s in seeds])}."
                 for v in self.variants if v != SCRATCH and len(seeds) > 1]
        copies = name_of(0)
        if len(seeds) > 1 and copies in final:
            facts += [f"* {v} minus copies (r = 0) at the end: {Mean.over([final[v][s] - final[copies][s] for s in seeds])}."
                      for v in self.variants if v not in (SCRATCH, copies)]
        if len(seeds) > 1:
            facts.append(f"* Standard deviation over seeds, from scratch: {statistics.stdev(final[SCRATCH].values()):.4f}.")
        builds = sorted({r["build"] for records in curves.values() for r in records})
        return f"""## Upcycling

Mixtures of experts that begin from a dense model (Drop-Upcycling, arXiv 2502.19261), on the King James Bible as `tools/quickstart` prepares it:

```
tests/bench/upcycling.py --bin build/release/bin --data data/kjv --work runs/upcycling {sizes}     # resumable
tests/bench/upcycling.py --work runs/upcycling {sizes} --report docs     # the table and figure below
```

A dense model ({a.layers} layers, hidden {a.hidden}, FFN {a.ffn}) is trained for {a.dense_steps} steps of {tokens} tokens, to a held-out loss of {cell(dense)}. From it come mixtures
of {a.experts} experts as wide as its FFN, of which a token takes 2, with a share r of each expert's neurons drawn anew; they and one from scratch are trained for
{a.steps} steps with fresh optimizer state and the same learning rates, data and seed. The tokens of the dense model are not counted: what is compared is training
after it exists. Held-out loss, nats a token, {len(seeds)} seed{"s" if len(seeds) > 1 else ""}{", with 95 % intervals of Student's t" if len(seeds) > 1 else ""}:

{table(["step", "tokens", *self.variants], rows)}

![Held-out loss against tokens](figures/upcycling.svg)

{chr(10).join(facts)}

In the paper the gain of r = 0.5 over copies shows in long training; this one is short. Trained by {", ".join(builds)}.
"""

    def draw(self, curves):
        pyplot = experiment.pyplot()
        figure, panel = pyplot.subplots(figsize=(6.4, 3.6))
        tokens = self.arguments.batch * self.arguments.sequence
        dense = statistics.fmean(r["valid"][-1][1] for r in curves["dense"])
        panel.axhline(dense, color="0.5", linewidth=0.8, linestyle=":", label="the dense model")
        for variant, color in zip(self.variants, ("0.4", "C0", "C2", "C3", "C4", "C1")):
            steps = [step for step, _ in curves[variant][0]["valid"]]
            means = [statistics.fmean(dict(map(tuple, r["valid"]))[step] for r in curves[variant]) for step in steps]
            panel.plot([step * tokens / 1e6 for step in steps], means, color=color, linewidth=1.2, label=variant)
        panel.set_xlabel("tokens after the dense model, millions")
        panel.set_ylabel("held-out loss, nats a token")
        panel.legend(fontsize=8)
        experiment.save_figure(figure, self.arguments.report, "upcycling")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/release/bin"))
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data/kjv"), help="corpus, as pecan-data --output named it")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/upcycling"), help="folder of the results")
    parser.add_argument("--scratch", type=pathlib.Path, help="folder for run directories while they are needed (default: the system's)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0, 0.5, 1], help="shares of neurons drawn anew")
    parser.add_argument("--dense-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2000, help="of each mixture of experts")
    parser.add_argument("--every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--ffn", type=int, default=256, help="neurons of the dense FFN and of an expert")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, of one thread each")
    parser.add_argument("--nice", type=int, default=19)
    parser.add_argument("--report", type=pathlib.Path, metavar="DIR",
                        help="write the section Upcycling of DIR/reproduction.md and DIR/figures/, and train nothing; give the sizes of the runs")
    arguments = parser.parse_args()
    if arguments.report is None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    runs = Experiment(arguments)
    if arguments.report is None:
        try:
            runs.run()
        except RuntimeError as error:
            sys.exit(f"upcycling: {error}")
    else:
        runs.report()


if __name__ == "__main__":
    main()
