#!/usr/bin/python3
"""Whole runs on CUDA devices: over the fast emulation, beside the same runs on the CPU, and a short one over the checked emulation,
which ends a process with exit code 86 where it finds a race or a bad access. Standard library only.

usage: cuda.py --bin DIR --mpiexec PATH --library PATH --checked PATH

The model, its data and the order of sums over ranks are the same on both devices, so that numbers differ by rounding alone. In f32
it makes 1e-6 of a loss in one step and grows with the updates, in bf16 half a unit in the last place of each activation.
"""
import argparse
import json
import os
import sys

from e2e import Lab, check, failures, parallel, records, settings, steps, stop_a_rank

TOLERANCE = {"f32": 2e-5, "bf16": 1e-2}
BASE = ["training.train_iters=8", "training.global_batch_size=2"]
NO_VALIDATION = "data.valid_data_path=''"
NO_SAVES = "checkpoint.save_interval=0"
MODELS = {
    "f32, evaluated": ("f32", ["training.eval_interval=4"]),
    "bf16": ("bf16", [NO_VALIDATION, "training.bf16=true", "model.qk_layernorm=true", "moe.moe_shared_expert_intermediate_size=16"]),
    "bf16, block-sparse experts": ("bf16", [NO_VALIDATION, "training.bf16=true", "moe.expert_compute=block_sparse"]),
    "f32, block-sparse experts, sigmoid scores, bias, capacity, documents, recomputed": ("f32", [
        NO_VALIDATION, "moe.expert_compute=block_sparse", "moe.moe_router_score_function=sigmoid", "moe.moe_router_enable_expert_bias=true", "moe.moe_router_bias_update_rate=0.05",
        "moe.moe_expert_capacity_factor=1.5", "data.reset_attention_mask=true", "data.reset_position_ids=true",
        "data.eod_mask_loss=true", "training.recompute_granularity=full"]),
    "f32, balanced over the batch, LayerNorm, learned positions, biases, GELU": ("f32", [
        NO_VALIDATION, "moe.moe_router_load_balancing_type=global_aux_loss", "model.normalization=LayerNorm",
        "model.position_embedding_type=learned_absolute", "model.max_position_embeddings=32", "model.disable_bias_linear=false",
        "model.swiglu=false"]),
}
LAYOUTS = {
    "EP 2": (2, parallel(ep=2)),
    "TP 2, EP 4, ETP 1, ZeRO-2 overlapped": (
        4, [*parallel(tp=2, ep=4, etp=1, strategy="optim_grads", reduce="true", gather="true"), "moe.moe_expert_capacity_factor=1.5",
            "training.global_batch_size=4"]),
    "EP 4, in chunks": (4, [*parallel(ep=4), "moe.dispatch_buffer_factor=1", "training.global_batch_size=4"]),
    "EP 4, in chunks, block-sparse experts": (
        4, [*parallel(ep=4), "moe.dispatch_buffer_factor=1", "training.global_batch_size=4", "moe.expert_compute=block_sparse"]),
}


def numbers(run_dir):
    """What two devices should agree on, by name."""
    found = {}
    for record in steps(run_dir):
        for key in ("loss", "aux_loss", "grad_norm"):
            found[f"{key} of step {record['step']}"] = record[key]
    for record in records(run_dir, "valid"):
        found[f"held-out loss after step {record['step']}"] = record["valid_loss"]
    return found


def compare(name, here, there, tolerance):
    check(here.keys() == there.keys() and len(here) > 8, f"{name}: the same records")
    worst, where = max(((abs(there[key] - value) / max(abs(value), 1e-3), key) for key, value in here.items()), default=(0, "nothing"))
    check(worst <= tolerance, f"{name}: numbers differ by {worst:.1e} at most, in the {where}, of {tolerance:.0e}")


def train(lab, name, device, ranks, *options, expect=0, resume=False):
    more = ["--resume-from-failure"] if resume else []
    return lab.train(ranks, lab.folder / name, *settings(f"training.device={device}", *BASE, *options), *more, expect=expect)


def same_losses(lab):
    for name, (precision, options) in MODELS.items():
        runs = {device: f"{device} {len(os.listdir(lab.folder))}" for device in ("cpu", "cuda")}
        for device, run in runs.items():
            said = train(lab, run, device, 1, NO_SAVES, *options).stdout
        check("device      " in said, f"{name}: the device is named")
        here, there = (numbers(lab.folder / runs[device]) for device in ("cpu", "cuda"))
        compare(name, here, there, TOLERANCE[precision])


def same_losses_on_ranks(lab):
    for name, (ranks, options) in LAYOUTS.items():
        runs = {device: f"{device}, {name}" for device in ("cpu", "cuda")}
        for device, run in runs.items():
            train(lab, run, device, ranks, NO_SAVES, NO_VALIDATION, *options)
        compare(name, *(numbers(lab.folder / runs[device]) for device in ("cpu", "cuda")), TOLERANCE["f32"])
        if "in chunks" in name:
            check(steps(lab.folder / runs["cuda"])[0]["dispatch_chunks_added"] > 0, f"{name}: micro-batches are cut")


def contents(run_dir):
    """Hashes of all items, by (incarnation, step), and those of the state that the last start recovered."""
    recorded, recovered = {}, None
    for record in records(run_dir, "content"):
        items = {name: item["hash"] for name, item in record["items"].items()}
        if record["recovered"]:
            recovered = record["items"]
        else:
            recorded[record["incarnation"], record["step"]] = items
    return recorded, recovered


def check_recovered(lab, name, run):
    recorded, recovered = contents(lab.folder / run)
    recovery = records(lab.folder / run, "recovery")[-1]
    stale = {(s["unit"], s["group"]): (s["incarnation"], s["step"]) for s in recovery["stale"]}
    whole = (recovery["from_incarnation"], recovery["step"])
    different = [] if recovered else ["nothing is recorded"]
    for item, found in (recovered or {}).items():
        version = stale.get((found["unit"], found["group"]), whole)
        # A kill between a snapshot and its record leaves nothing to compare with.
        unrecorded = version[1] > max(step for incarnation, step in recorded if incarnation == version[0])
        if not unrecorded and recorded[version][item] != found["hash"]:
            different.append(item)
    check(not different, f"{name}: every item recovered from step {whole[1]} has the content of its step"
          + (f", but {different[:3]}" if different else ""))
    return recovery, stale


def kill_and_resume(lab):
    saves = [NO_VALIDATION, "checkpoint.save_interval=2", "logging.content_hash_interval=1", "fault.inject=[kill step=7 rank=0]",
             "checkpoint.async_save=false"]
    # Everything is in the checkpoint: what follows are the bits of a run that nobody killed.
    everything = [*saves, "checkpoint.pec.experts_per_checkpoint=8", "training.bf16=true"]
    train(lab, "whole", "cuda", 1, *everything, "fault.inject=[]")
    train(lab, "killed", "cuda", 1, *everything, expect=137)
    train(lab, "killed", "cuda", 1, *everything, resume=True)
    recovery, stale = check_recovered(lab, "killed", "killed")
    check(recovery["step"] == 6 and not stale, "killed: goes on from step 6, whole")
    whole, resumed = (contents(lab.folder / run)[0] for run in ("whole", "killed"))
    check(whole[0, 8] == resumed[1, 8], "killed: the state of step 8 is that of the run that was not killed, bit by bit")

    partial = [*saves, "checkpoint.pec.experts_per_checkpoint=2"]
    train(lab, "partial", "cuda", 1, *partial, expect=137)
    train(lab, "partial", "cuda", 1, *partial, resume=True)
    recovery, stale = check_recovered(lab, "partial", "partial")
    check(recovery["step"] >= 4 and stale, f"partial: goes on from step {recovery['step']}, experts of {len(set(stale.values()))} other steps")
    # Snapshots in memory while training goes on: which one is the newest depends on the machine, and so does when the fault strikes.
    memory = lab.folder / "memory"
    memory.mkdir()
    partial += [f"checkpoint.memory_dir={memory}", "checkpoint.non_persistent_save_interval=1",
                "checkpoint.pec.experts_per_snapshot=4", "checkpoint.async_save=true", "training.train_iters=1000", "fault.inject=[kill step=4 rank=0 phase=committed]"]
    train(lab, "partial, meanwhile", "cuda", 1, *partial, expect=137)
    train(lab, "partial, meanwhile", "cuda", 1, *partial, "fault.inject=[]", "training.exit_interval=4", resume=True, expect=75)
    check_recovered(lab, "partial, meanwhile", "partial, meanwhile")

    # Two ranks that hold experts of their own.
    pair = [*saves, *parallel(ep=2), "fault.inject=[kill step=7 rank=1]"]
    train(lab, "pair", "cuda", 2, *pair, expect=137)
    train(lab, "pair", "cuda", 2, *pair, resume=True)
    check_recovered(lab, "pair", "pair")

    # The device is no part of a checkpoint.
    for first, then in (("cpu", "cuda"), ("cuda", "cpu")):
        run = f"{first} to {then}"
        train(lab, run, first, 1, *saves, expect=137)
        train(lab, run, then, 1, *saves, resume=True)
        check_recovered(lab, run, run)


def checked(lab, library):
    fast = os.environ["PECAN_CUDA_LIBRARY"]
    os.environ["PECAN_CUDA_LIBRARY"] = library
    memory = lab.folder / "checked memory"
    memory.mkdir()
    train(lab, "checked", "cuda", 2, NO_VALIDATION, "training.train_iters=4", "checkpoint.save_interval=2",
          "checkpoint.non_persistent_save_interval=1", f"checkpoint.memory_dir={memory}", "checkpoint.pec.experts_per_snapshot=4",
          "moe.moe_router_score_function=sigmoid", "moe.moe_router_enable_expert_bias=true", "moe.expert_compute=block_sparse",
          *parallel(ep=2, strategy="optim_grads", reduce="true", gather="true"))
    os.environ["PECAN_CUDA_LIBRARY"] = fast


def faults(lab):
    said = train(lab, "nan", "cuda", 1, NO_SAVES, NO_VALIDATION, "fault.inject=[nan step=3 repeats=yes]", expect=6).stdout
    check("the first bad tensor is the gradient of" in said, "nan: found on the device")
    said = train(lab, "flip", "cuda", 1, NO_SAVES, NO_VALIDATION, "fault.inject=[flip step=3]").stdout
    check("strikes: bit" in said, "flip: a bit of the device's memory")


def profile(lab):
    """Calls, flops and bytes of a device's operators are those of the CPU's; the spans of its steps leave no time out."""
    sums = {}
    for device in ("cpu", "cuda"):
        run = lab.folder / f"profile, {device}"
        said = lab.train(2, run, *settings(f"training.device={device}", *BASE, NO_SAVES, NO_VALIDATION, *parallel(ep=2), "training.train_iters=3"),
                         "--profile", "--profile-steps", "2:3").stdout
        trace = json.loads((run / "profile" / "rank-00001.trace.json").read_text())
        of_main = [row for row in trace["otherData"]["sums"] if row["thread"] == "main"]
        sums[device] = {row["name"]: (row["calls"], row["flops"], row["bytes"]) for row in of_main if row["kind"] == "operator"}
        check(any(row["name"] == "all_to_all_v" and row["flight_ns"] > 0 for row in of_main), f"profile, {device}: collectives are timed")
        steps_ns = sum(row["total_ns"] for row in of_main if row["kind"] == "step")
        check(steps_ns == sum(row["self_ns"] for row in of_main) > 0, f"profile, {device}: times add up to the steps'")
    check("of the device are not measured" in said, "profile, cuda: the table says what it cannot tell")
    different = {key for key in sums["cpu"].keys() | sums["cuda"].keys() if sums["cpu"].get(key) != sums["cuda"].get(key)}
    check(len(sums["cuda"]) > 15 and not different,
          f"profile: {len(sums['cuda'])} operators with the work of the CPU's" + (f", but {different}" if different else ""))


def stopped(lab):
    stop_a_rank(lab, "devices", 2, ["training.device=cuda", *BASE, NO_VALIDATION, *parallel(ep=2)])


def refusals(lab):
    os.environ["PECAN_EMULATION_SHARED_KB"] = "99"
    wide = ["model.kv_channels=256", NO_SAVES, NO_VALIDATION]
    why = ("model.kv_channels=256: gradients of attention with a head_dim of 256 in f32 take 142720 bytes of shared memory a block, and the "
           "device has 101376, enough for a head_dim of 128 (in bf16 of 128)")
    said = train(lab, "wide", "cuda", 1, *wide, expect=2).stdout
    check(f"training.device=cuda, but {why}; use auto or cpu" in said, "wide heads: refused")
    said = train(lab, "wide, auto", "auto", 1, *wide, "logging.level=info").stdout
    check(f"training on the CPU: {why}" in said, "wide heads: auto takes the CPU")
    del os.environ["PECAN_EMULATION_SHARED_KB"]
    os.environ["PECAN_EMULATION_DEVICES"] = "0"
    said = train(lab, "none", "cuda", 2, *parallel(ep=2), expect=2).stdout
    check("training.device=cuda, but the CUDA driver shows no device" in said, "no device: refused")
    said = train(lab, "none, auto", "auto", 2, NO_SAVES, NO_VALIDATION, *parallel(ep=2), "logging.level=info").stdout
    check("training on the CPU: the CUDA driver shows no device" in said, "no device: auto says that it takes the CPU")
    os.environ["PECAN_EMULATION_DEVICES"] = "1"
    said = train(lab, "shared", "cuda", 2, *parallel(ep=2), expect=2).stdout
    check("training.device=cuda, but ranks 0 and 1 are on one host" in said, "a device for two: refused")
    said = train(lab, "shared, auto", "auto", 2, NO_SAVES, NO_VALIDATION, *parallel(ep=2), "logging.level=info").stdout
    check("training on the CPU: ranks 0 and 1 are on one host" in said, "a device for two: auto takes the CPU")
    os.environ["PECAN_EMULATION_FAIL"] = "cudaMalloc:3"
    said = train(lab, "short", "cuda", 1, NO_SAVES, NO_VALIDATION, expect=70).stdout
    del os.environ["PECAN_EMULATION_FAIL"]
    check("no memory for a buffer of" in said, "device memory that runs out: said")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--mpiexec", default="mpirun")
    parser.add_argument("--library", required=True)
    parser.add_argument("--checked", required=True)
    arguments = parser.parse_args()
    os.environ |= {"PECAN_CUDA_LIBRARY": arguments.library, "PECAN_EMULATION_DEVICES": "4"}
    lab = Lab(arguments)
    try:
        same_losses(lab)
        same_losses_on_ranks(lab)
        kill_and_resume(lab)
        checked(lab, arguments.checked)
        faults(lab)
        profile(lab)
        stopped(lab)
        refusals(lab)
    finally:
        lab.close()
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
