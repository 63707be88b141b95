#!/usr/bin/python3
"""Each kind of injected fault over MPI with two ranks: what the run says, and its exit code. Standard library only.

usage: faults.py --bin DIR --mpiexec PATH
"""
import argparse
import json
import os
import sys

from e2e import Lab, check, failures, records, settings, steps

# Training waits for saves, so that each run does the same whatever else the machine does.
BASE = settings("parallel.expert_model_parallel_size=2", "checkpoint.async_save=false", "training.train_iters=8")


def train(lab, name, fault, *extra, expect, resume=False):
    """A run with a fault of the configuration; returns what it said."""
    options = [*BASE, *settings(f"fault.inject=[{fault}]", *extra), *(["--resume-from-failure"] if resume else [])]
    return lab.train(2, lab.folder / name, *options, expect=expect).stdout


def ends_of_a_process(lab):
    said = train(lab, "kill", "kill step=5 rank=1", expect=137)
    check('rank 1: the injected fault "kill at step 5 on rank 1" strikes' in said, "kill: announced by the rank that it strikes")
    check("injected on purpose into start 0: kill at step 5 on rank 1" in said, "kill: announced when the start begins")
    check(steps(lab.folder / "kill")[-1]["step"] == 4, "kill: four steps are done")
    train(lab, "kill", "kill step=5 rank=1", expect=0, resume=True)
    check(records(lab.folder / "kill", "recovery")[0]["step"] == 4, "kill: the next start goes on from step 4, unstruck")

    said = train(lab, "exit", "exit step=4-6 rank=random code=9 seed=5", expect=None)
    check("strikes" in said and steps(lab.folder / "exit")[-1]["step"] in (3, 4, 5), "exit: at one of the steps 4 to 6")

    said = train(lab, "stop", "stop step=3 rank=1", "comm.timeout_s=2", expect=5)
    check("rank 1" in said and "waited 2 s" in said, "stop: rank 0 says for whom it waits, exit code 5")

    os.environ["PECAN_FAULT"] = "exit step=2 rank=0 code=9; nan step=1 start=4"
    said = lab.train(2, lab.folder / "environment", *BASE, expect=None).stdout
    check("exit at step 2 on rank 0" in said, "PECAN_FAULT: read")
    os.environ["PECAN_FAULT"] = "melt step=2"
    said = lab.train(2, lab.folder / "environment-2", *BASE, expect=2).stdout
    check('no kind "melt"' in said and said.count("pecan-train: ") == 1, "PECAN_FAULT: a bad one is refused, once")
    del os.environ["PECAN_FAULT"]
    said = train(lab, "refused", "corrupt step=2", "checkpoint.save_interval=0", expect=2)
    check("save_interval=0 writes none" in said, "a fault that could never strike is refused")


def disks(lab):
    said = train(lab, "full", "fill_disk step=5 rank=1", expect=4)
    saves = {r["step"]: r["committed"] for r in records(lab.folder / "full", "checkpoint")}
    check(saves == {2: True, 4: True, 6: False, 8: False}, f"fill_disk: saves from step 5 on are reported as failed {saves}")
    check("No space left on device" in said and steps(lab.folder / "full")[-1]["step"] == 8, "fill_disk: said, and training goes on")
    check("the state of step 8 could not be written" in said, "fill_disk: at the end it is an error, exit code 4")
    check(lab.inspect(lab.folder / "full", "verify").returncode == 0, "fill_disk: what is committed is whole")

    train(lab, "slow", "slow_disk step=3 rank=0 bytes_per_s=400000", expect=0)
    saves = {r["step"]: r for r in records(lab.folder / "slow", "checkpoint")}
    check(all(r["committed"] for r in saves.values()), "slow_disk: saves come to their end")
    slowest = saves[4]["bytes_rank0"] / 400000 * 1000
    check(saves[4]["persist_ms"] >= 0.9 * slowest, f"slow_disk: {saves[4]['persist_ms']:.0f} ms of at least {slowest:.0f} ms")

    said = train(lab, "corrupt", "corrupt step=6 rank=1 seed=3", "training.exit_interval=6", expect=75)
    check("strikes: bit " in said, "corrupt: the bit is named")
    verify = lab.inspect(lab.folder / "corrupt", "verify")
    check(verify.returncode == 4 and "step-00000006" in verify.stdout, "corrupt: verify names the checkpoint, exit code 4")
    said = train(lab, "corrupt", "corrupt step=6 rank=1 seed=3", expect=0, resume=True)
    recovery = records(lab.folder / "corrupt", "recovery")[0]
    check(recovery["damages"] and (recovery["step"] == 4 or recovery["stale"]), f"corrupt: found and worked round {recovery['damages']}")
    check(steps(lab.folder / "corrupt")[-1]["step"] == 8, "corrupt: trained to the end")


def numbers(lab):
    said = train(lab, "nan", "nan step=4 rank=1 seed=2", expect=6)
    check("the first bad tensor is the gradient of model." in said and "in backward of micro-batch 0, on rank 1 (1 of" in said,
          "nan: tensor, pass and rank are named")
    check(said.count("the first bad tensor") == 1, "nan: once")

    skip = ("training.check_for_nan_in_loss_and_grad=skip", "training.rollback_after_skips=2")
    faults = "nan step=6 rank=1, nan step=7 rank=0"
    losses = []
    for name in ("rolled", "repeated"):
        said = train(lab, name, faults, *skip, expect=0)
        rollback = records(lab.folder / name, "rollback")
        check([r["to"] for r in rollback] == [4] and rollback[0]["passed_over"] == [16, 28], f"{name}: back to step 4, 12 samples passed over")
        check("rollback 1 of 3: steps 6 to 7 were skipped in a row; back to step 4" in said, f"{name}: said")
        done = [(r["incarnation"], r["step"], r["consumed_samples"]) for r in steps(lab.folder / name)]
        check(done == [(0, s, 4 * s) for s in range(1, 8)] + [(1, s, 4 * s + 12) for s in range(5, 9)],
              f"{name}: from step 5 on once more, with the samples behind those passed over {done}")
        kept = json.loads((lab.folder / name / "skipped_data.json").read_text())
        check(kept["ranges"] == [[16, 28]], f"{name}: {kept['ranges']} is remembered")
        losses.append([(r["loss"], r["grad_norm"]) for r in steps(lab.folder / name)])
    check(losses[0] == losses[1], "a second run with the same faults has the same losses to the last bit")

    hopeless = (*skip, "training.rollback_after_skips=1", "training.max_rollbacks=1")
    said = train(lab, "hopeless", "nan step=6 start=every", *hopeless, expect=6)
    check("max_rollbacks=1 rollbacks did not get past step 6" in said and "lower optimizer.lr" in said, "rollbacks that do not help: said")
    train(lab, "hopeless", "nan step=6 start=7", *hopeless, expect=0, resume=True)
    check(steps(lab.folder / "hopeless")[-1]["consumed_samples"] == 4 * 8 + 16, "the next start passes over the data of both attempts")
    kept = lab.folder / "hopeless" / "skipped_data.json"
    kept.write_text(kept.read_text().replace("16", "17"))
    said = train(lab, "hopeless", "nan step=6 start=7", *hopeless, expect=4, resume=True)
    check("skipped_data.json cannot be used: its content contradicts its checksum" in said, "a damaged list of what is passed over is refused")
    said = train(lab, "early", "nan step=1", *hopeless, expect=6)
    check("no checkpoint before them" in said, "nothing to return to: said")

    said = train(lab, "spike", "spike step=18 rank=0 factor=1000", "training.train_iters=20", "training.spiky_loss_sigmas=30",
                 "checkpoint.save_interval=0", expect=6)
    check("more than training.spiky_loss_sigmas=30 standard deviations" in said, "spike: said, exit code 6")

    flip = "training.check_weight_hash_across_dp_replicas_interval=3"
    said = train(lab, "flip", "flip step=5 rank=1", flip, "parallel.expert_model_parallel_size=1", expect=6)
    check("after step 6 ranks 0, 1 hold different bytes of model." in said, "flip: found at the next comparison, both holders named")
    said = lab.train(4, lab.folder / "flip-4", *BASE, *settings("fault.inject=[flip step=6 rank=2]", flip, "parallel.expert_model_parallel_size=4"), expect=6).stdout
    check("after step 6 rank 2 holds other bytes of model." in said, "flip: with four holders the rank is named")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--mpiexec", default="mpirun")
    lab = Lab(parser.parse_args())
    try:
        ends_of_a_process(lab)
        disks(lab)
        numbers(lab)
    finally:
        lab.close()
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
