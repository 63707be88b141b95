#!/usr/bin/python3
"""The quickstart's model with every option of its experts, from the recipes in configs/ themselves: trains, stops and goes on in other
layouts. Standard library only.

usage: experts.py --bin DIR --mpiexec PATH
"""
import argparse
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import e2e  # noqa: E402
from e2e import check, close_to, parallel, settings, steps  # noqa: E402

CONFIGS = pathlib.Path(__file__).resolve().parent.parent.parent / "configs"
STEPS = 6
# As small as the models of the other suites; everything else is the recipes'.
SMALL = settings("model.num_layers=2", "model.hidden_size=32", "model.make_vocab_size_divisible_by=64", "training.seq_length=32",
                 "training.micro_batch_size=1", "training.global_batch_size=4", "optimizer.lr_warmup_iters=1")
SMALL_MOE = [*SMALL, *settings("moe.moe_ffn_hidden_size=24", "checkpoint.save_interval=2", f"training.train_iters={STEPS}")]
SMALL_DENSE = [*SMALL, *settings("model.ffn_hidden_size=48", "training.train_iters=60")]
# Each takes two samples at a time: default vectors move once a micro-batch of all ranks, so that more or fewer would be another model.
UNDISTURBED, SPREAD, ELSEWHERE = (2, parallel(ep=1)), (2, parallel(ep=2)), (4, parallel(tp=2, ep=4, etp=1))
LOOP = settings("moe.expert_compute=loop")
# Operators that are seen in a profile with an option, and those that are not.
COMPUTED_BY = {"grouped": ("grouped_matmul_", "block_sparse_"), "block-sparse": ("block_sparse_", "grouped_matmul_"),
               "loop": ("matmul_", "(grouped_matmul|block_sparse)_"), "default-vectors": ("default_vectors_update", "block_sparse_")}


def recipe(path):
    return ["--config", str(path)]


def option_sets():
    """Options of each recipe and of each other way to compute experts, on top of the quickstart's."""
    recipes = {path.stem: recipe(path) for path in sorted((CONFIGS / "experts").glob("*.yaml"))}
    return {"grouped": [], "loop": LOOP, **recipes, "all together": [word for words in recipes.values() for word in words]}


class Quickstart:
    """The quickstart's configurations on the lab's corpus."""

    def __init__(self, lab):
        self.lab = lab
        corpus = lab.folder / "corpus"
        self.data = settings(f"data.data_path={corpus}_train", f"data.valid_data_path={corpus}_valid",
                             f"data.tokenizer_model={corpus}.tokenizer.model")

    def options(self, options):
        """Of a mixture of experts; later ones win, --set wins over recipes."""
        return [*recipe(CONFIGS / "quickstart.yaml"), *options, *SMALL_MOE, *self.data]

    def train(self, layout, run_dir, options, *more, expect=0):
        ranks, layout = layout
        return self.lab.run([self.lab.mpiexec, "-n", str(ranks), self.lab.bin / "pecan-train", *self.options(options),
                             "--run-dir", run_dir, *settings(*layout), *more], expect=expect)

    def dense(self):
        run_dir = self.lab.folder / "dense"
        self.lab.run([self.lab.mpiexec, "-n", "1", self.lab.bin / "pecan-train", *recipe(CONFIGS / "quickstart-dense.yaml"), *SMALL_DENSE,
                      *self.data, "--run-dir", run_dir], expect=0)
        return run_dir

    def upcycle(self, dense, out, options):
        self.lab.run([self.lab.bin / "pecan-convert", "upcycle", "--from", dense, "--out", out, "--drop-ratio", "0.5",
                      *self.options(options)], expect=0)
        return out


def losses_of(run_dir):
    return [record["loss"] for record in steps(run_dir)]


def same(name, losses, others):
    check(len(losses) == STEPS and all(close_to(a, b, 1e-5) for a, b in zip(losses, others)), f"{name}: losses {losses}, {others}")


def goes_on_elsewhere(quickstart, name, run_dir, options, undisturbed, *first):
    """A run that stops with experts on two ranks goes on with tensor parallelism on four, as the run that never stopped."""
    quickstart.train(SPREAD, run_dir, options, *settings("training.exit_interval=3"), *first, expect=75)
    quickstart.train(ELSEWHERE, run_dir, options, "--resume-from-failure")
    same(f"{name}, EP 2, then TP 2, EP 4", losses_of(run_dir), undisturbed)
    check(quickstart.lab.inspect(run_dir, "verify").returncode == 0, f"{name}: every checksum holds")


def fresh_runs(quickstart):
    """Each option trains from scratch; losses of the undisturbed runs, by name."""
    lab, whole = quickstart.lab, {}
    for name, options in option_sets().items():
        label = name.replace(" ", "-")
        run_dir = lab.folder / f"whole-{label}"
        quickstart.train(UNDISTURBED, run_dir, options, "--profile", "--profile-steps", f"{STEPS}:{STEPS}")
        whole[name] = losses_of(run_dir)
        check(whole[name][-1] < whole[name][0], f"{name}: the loss falls from {whole[name][0]} to {whole[name][-1]}")
        if name in COMPUTED_BY:
            operators = (run_dir / "profile" / "operators.txt").read_text()
            seen, unseen = (bool(re.search(rf"^\s*{pattern}", operators, re.M)) for pattern in COMPUTED_BY[name])
            check(seen and not unseen, f"{name}: computed by it" + ("" if seen and not unseen else f", not by\n{operators}"))
        goes_on_elsewhere(quickstart, name, lab.folder / f"halved-{label}", options, whole[name])
    for name in ("block-sparse", "loop"):
        same(f"{name} beside grouped", whole[name], whole["grouped"])
    return whole


def upcycled_runs(quickstart, fresh):
    """The quickstart's dense model, half of its neurons redrawn, trains on with and without the other options."""
    lab, dense = quickstart.lab, quickstart.dense()
    for name in ("grouped", "all together"):
        options = option_sets()[name]
        label = f"upcycled-{name.replace(' ', '-')}"
        run_dir = quickstart.upcycle(dense, lab.folder / label, options)
        origin = json.loads((run_dir / "origin.json").read_text())
        check(origin["drop_ratio"] == 0.5 and origin["drawn_neurons"] == 12, f"{label}: half of the neurons are drawn anew")
        quickstart.train(UNDISTURBED, run_dir, options, "--resume-from-failure")
        undisturbed = losses_of(run_dir)
        check(undisturbed[0] < fresh[name][0] - 0.1, f"{label}: begins at {undisturbed[0]}, from scratch at {fresh[name][0]}")
        check(undisturbed[-1] < undisturbed[0], f"{label}: the loss falls on to {undisturbed[-1]}")
        goes_on_elsewhere(quickstart, label, quickstart.upcycle(dense, lab.folder / f"halved-{label}", options), options, undisturbed,
                          "--resume-from-failure")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--mpiexec", default="mpirun")
    lab = e2e.Lab(parser.parse_args())
    try:
        quickstart = Quickstart(lab)
        upcycled_runs(quickstart, fresh_runs(quickstart))
    finally:
        lab.close()
    print(f"{len(e2e.failures)} failures")
    return 1 if e2e.failures else 0


if __name__ == "__main__":
    sys.exit(main())
