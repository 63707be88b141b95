#!/usr/bin/python3
"""A dense run becomes a mixture of experts: pecan-convert upcycle and what follows, as whole runs. Standard library only.

usage: upcycling.py --bin DIR --mpiexec PATH
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import e2e  # noqa: E402
from e2e import check, close_to, parallel, records, settings, steps  # noqa: E402

DENSE = settings("moe.num_experts=0", "checkpoint.pec.experts_per_checkpoint=0", "model.ffn_hidden_size=48")
# Steps that change nothing: what is evaluated after one is the state that it began with.
STILL = settings("optimizer.lr=1e-30", "training.train_iters=1", "checkpoint.save_interval=0")


def loss_of(run_dir, step=None):
    """Held-out loss, the last or that of a step."""
    return [r["valid_loss"] for r in records(run_dir, "valid") if step is None or r["step"] == step][-1]


def convert(lab, *options, dense, out, expect=0):
    return lab.run([lab.bin / "pecan-convert", "upcycle", "--from", dense, "--out", out, "--config", lab.config, *options],
                   expect=expect)


def same_loss(lab, dense):
    """Without redrawn neurons the held-out loss is that of the dense run, in any layout."""
    before = loss_of(dense)
    for name, ranks, options, layout in (
            ("copies", 2, ["moe.moe_ffn_hidden_size=48"], parallel(ep=2)),
            ("two parts", 1, ["moe.moe_ffn_hidden_size=24"], [])):
        out = lab.folder / f"same-{name.replace(' ', '-')}"
        convert(lab, "--drop-ratio", "0", "--router-std", "0.5", *settings(*options), dense=dense, out=out)
        lab.train(ranks, out, "--resume-from-failure", *STILL, *settings(*layout), config=out / "config.yaml")
        check(close_to(loss_of(out), before, 1e-6), f"{name}: held-out loss {loss_of(out)} after upcycling, {before} before")
        recovery = records(out, "recovery")[0]
        check(recovery["step"] == 0 and not recovery.get("damages"), f"{name}: goes on from step 0")


def layouts(lab, dense):
    """Half redrawn, the same training follows in every layout, and the dense run is not touched."""
    before = sorted((path.name, path.stat().st_mtime_ns) for path in dense.rglob("*"))
    made = lab.folder / "half"
    convert(lab, "--drop-ratio", "0.5", *settings("moe.moe_ffn_hidden_size=48"), dense=dense, out=made)
    check(before == sorted((path.name, path.stat().st_mtime_ns) for path in dense.rglob("*")), "the dense run is only read")
    check(lab.inspect(made, "verify").returncode == 0, "every checksum of the upcycled checkpoint holds")
    origin = json.loads((made / "origin.json").read_text())
    check(origin["drop_ratio"] == 0.5 and origin["drawn_neurons"] == 24 and origin["from"]["step"] == 6, "origin.json tells it")
    alone = None
    for name, ranks, layout in (("1 rank", 1, []), ("EP 2", 2, parallel(ep=2)), ("TP 2, EP 2", 2, parallel(tp=2, ep=2, etp=1))):
        run_dir = lab.folder / f"half-{name.replace(', ', '-').replace(' ', '-')}"
        shutil.copytree(made, run_dir)
        lab.train(ranks, run_dir, "--resume-from-failure", *settings(*layout, "training.train_iters=3"), config=made / "config.yaml")
        losses = [r["loss"] for r in steps(run_dir)]
        alone = alone or losses
        check(len(losses) == 3 and all(close_to(a, b, 1e-5) for a, b in zip(losses, alone)), f"{name}: losses {losses}")
    return made


def partial_checkpoints(lab, made):
    """The first checkpoint is what partial ones stand on: after a kill, experts come from step 0 too."""
    run_dir = lab.folder / "killed"
    shutil.copytree(made, run_dir)
    options = settings("training.train_iters=5", "checkpoint.async_save=false", "checkpoint.pec.experts_per_checkpoint=2")
    lab.train(1, run_dir, "--resume-from-failure", *options, "--set", "fault.inject=[kill step=4 start=1]", config=made / "config.yaml",
              expect=137)
    lab.train(1, run_dir, "--resume-from-failure", *options, config=made / "config.yaml")
    recovery = records(run_dir, "recovery")[-1]
    check(recovery["step"] == 2 and recovery["older_experts"] == 12 and recovery["most_steps_older"] == 2,
          f"back to step {recovery['step']}, {recovery['older_experts']} of 16 experts from step 0")
    check(lab.inspect(run_dir, "verify").returncode == 0, "what is kept afterwards is whole")


def peak_memory(lab, command):
    """Most bytes of memory that a program had resident."""
    child = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, env={**os.environ, **e2e.ENVIRONMENT})
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    check(child.returncode == 0, "a larger model is upcycled")
    return usage.ru_maxrss * 1024


def memory(lab):
    """Memory is that of one layer, however many there are."""
    peaks, layer = [], 0
    shape = settings("model.hidden_size=128", "model.ffn_hidden_size=512", "training.seq_length=8", "training.global_batch_size=1")
    for layers in (3, 12):
        dense = lab.folder / f"dense-{layers}"
        more = settings(f"model.num_layers={layers}")
        lab.train(1, dense, *DENSE, *shape, *more, "--set", "training.train_iters=2", "--set", "data.valid_data_path=''")
        out = lab.folder / f"large-{layers}"
        peaks.append(peak_memory(lab, [
            lab.bin / "pecan-convert", "upcycle", "--from", dense, "--out", out, "--config", lab.config, *shape,
            *settings(f"model.num_layers={layers}", "moe.num_experts=4", "moe.moe_ffn_hidden_size=512")]))
        layer = sum(path.stat().st_size for path in out.glob("checkpoints/step-*/rank-00002.*.h5"))
        shutil.rmtree(dense)
        shutil.rmtree(out)
    check(layer > 9e6, f"a layer has {layer} bytes of state")
    check(peaks[1] - peaks[0] < 0.5 * layer,
          f"peak memory {peaks[0]} bytes with 3 layers, {peaks[1]} with 12; a layer has {layer}")


def refusals(lab, dense):
    """What cannot be made is refused with the reason, and leaves nothing behind."""
    def refused(name, code, *texts, options=(), source=dense, out=None):
        out = out or lab.folder / "refused"
        done = convert(lab, *options, dense=source, out=out, expect=code)
        for text in texts:
            check(text in done.stdout, f"{name}: says '{text}'" + ("" if text in done.stdout else f", not {done.stdout}"))
        check(not (lab.folder / "refused").exists(), f"{name}: leaves nothing behind")

    wide = settings("moe.moe_ffn_hidden_size=48")
    refused("experts of another width", 2, "moe_ffn_hidden_size=30", "ffn_hidden_size=48", "divisor",
            options=settings("moe.moe_ffn_hidden_size=30"))
    refused("another depth", 2, "model.num_layers=3, but 2", options=[*wide, *settings("model.num_layers=3")])
    refused("a dense model", 2, "moe.num_experts=0", options=DENSE)
    refused("no share", 2, "drop ratio 2", options=[*wide, "--drop-ratio", "2"])
    refused("no run", 4, "holds no checkpoints", options=wide, source=lab.folder / "nowhere")
    refused("no such step", 4, "no whole checkpoint of step 99", options=[*wide, "--step", "99"])
    refused("an earlier run", 4, "holds an earlier run", "choose another", options=wide, out=lab.folder / "half")
    refused("a mixture of experts", 2, "has 8 experts already", options=wide, source=lab.folder / "half")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--mpiexec", default="mpirun")
    arguments = parser.parse_args()
    lab = e2e.Lab(arguments)
    try:
        dense = lab.folder / "dense"
        # Every matrix lies in two parts in the checkpoint, and moments in shares.
        lab.train(2, dense, *DENSE, *settings(*parallel(tp=2), "training.train_iters=6", "parallel.use_distributed_optimizer=true"))
        same_loss(lab, dense)
        made = layouts(lab, dense)
        partial_checkpoints(lab, made)
        refusals(lab, dense)
        memory(lab)
    finally:
        lab.close()
    print(f"{len(e2e.failures)} failures")
    return 1 if e2e.failures else 0


if __name__ == "__main__":
    sys.exit(main())
