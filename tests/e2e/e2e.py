#!/usr/bin/python3
"""Whole runs of the programs: layouts, resume, kills, damage and bad input. Standard library only.

usage: e2e.py SUITE --bin DIR --mpiexec PATH [--seeds N]
"""
import argparse
import json
import os
import re
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,vader",
    # A killed rank ends the job at once instead of after two seconds.
    "OMPI_MCA_odls_base_sigkill_timeout": "0", "OMP_NUM_THREADS": "1",
}
CONFIG = """
model: {num_layers: 2, hidden_size: 32, num_attention_heads: 4, num_query_groups: 2, make_vocab_size_divisible_by: 64}
moe: {num_experts: 8, moe_ffn_hidden_size: 24, moe_router_topk: 2, moe_layer_freq: 1, moe_aux_loss_coeff: 0.01,
      dispatch_buffer_factor: 4}
training: {seq_length: 32, micro_batch_size: 1, global_batch_size: 4, train_iters: 40, seed: 7}
optimizer: {lr: 0.003, lr_warmup_iters: 1, weight_decay: 0.1}
data: {data_path: DATA_train, valid_data_path: DATA_valid, tokenizer_model: DATA.tokenizer.model}
checkpoint: {save_interval: 2, keep_latest_k: 1, fallback_copies: 1, pec: {experts_per_checkpoint: 2}}
comm: {timeout_s: 60}
"""
failures = []


def check(condition, text):
    print(("ok    " if condition else "FAILED ") + text, flush=True)
    if not condition:
        failures.append(text)


class Lab:
    """A temporary folder with a corpus, a configuration and the programs."""

    skipped = False  # a part of the suite could not run here

    def __init__(self, arguments):
        self.bin = pathlib.Path(arguments.bin)
        self.mpiexec = arguments.mpiexec
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pecan-e2e-"))
        rng = random.Random(1)
        words = ["".join(rng.choice("abcdefghijklmnop") for _ in range(rng.randint(2, 7))) for _ in range(150)]
        documents = [" ".join(rng.choice(words) for _ in range(rng.randint(30, 120))) + "." for _ in range(160)]
        (self.folder / "text.txt").write_text("\n\n".join(documents) + "\n")
        self.run([self.bin / "pecan-data", "prepare", "--input", self.folder / "text.txt", "--document-separator",
                  "blank-line", "--output", self.folder / "corpus", "--vocab-size", "400", "--held-out", "10"], expect=0)
        self.config = self.folder / "config.yaml"
        self.config.write_text(CONFIG.replace("DATA", str(self.folder / "corpus")))

    def run(self, command, expect=None, timeout=120):
        done = subprocess.run([str(c) for c in command], env={**os.environ, **ENVIRONMENT}, text=True, timeout=timeout,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if expect is not None:
            check(done.returncode == expect, f"exit code {done.returncode} (expected {expect}): "
                  + " ".join(pathlib.Path(str(c)).name for c in command[:8]))
            if done.returncode != expect:
                print(done.stdout, flush=True)
        return done

    def command(self, ranks, run_dir, *options, config=None):
        return [self.mpiexec, "-n", str(ranks), str(self.bin / "pecan-train"), "--config", str(config or self.config),
                "--run-dir", str(run_dir), *options]

    def train(self, ranks, run_dir, *options, expect=0, config=None):
        return self.run(self.command(ranks, run_dir, *options, config=config), expect=expect)

    def layout(self, ep):
        return ["--set", f"parallel.expert_model_parallel_size={ep}"]

    def inspect(self, run_dir, *words):
        return self.run([self.bin / "pecan-inspect", run_dir, *words])

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def steps(run_dir):
    """Step records of metrics.jsonl; a line that a kill cut short is not one."""
    records = []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record.get("kind") == "step":
            records.append(record)
    return records


def close_to(a, b, tolerance):
    return abs(a - b) <= tolerance * abs(b)


# Models and data whose sums cross ranks in their own ways.
LAYOUT_VARIANTS = {
    "plain": [],
    "documents": ["data.reset_attention_mask=true", "data.reset_position_ids=true", "data.eod_mask_loss=true",
                  "training.global_batch_size=32"],
    "sigmoid, bias, capacity": ["moe.moe_router_score_function=sigmoid", "moe.moe_router_enable_expert_bias=true",
                                "moe.moe_router_bias_update_rate=0.05", "moe.moe_expert_capacity_factor=1.5"],
}


def parallel(**sizes):
    """Settings of a layout by short names."""
    keys = {"tp": "tensor_model_parallel_size", "ep": "expert_model_parallel_size", "etp": "expert_tensor_parallel_size",
            "strategy": "data_parallel_sharding_strategy", "reduce": "overlap_grad_reduce", "gather": "overlap_param_gather"}
    settings = [f"parallel.{keys[name]}={value}" for name, value in sizes.items()]
    if "tp" in sizes:
        settings.append("parallel.sequence_parallel=true")
    return settings


LAYOUTS = {
    "1 rank": (1, []),
    "EP 2": (2, parallel(ep=2)),
    "EP 4": (4, parallel(ep=4)),
    "EP 2 x EDP 2": (4, parallel(ep=2)),
    "TP 2": (2, parallel(tp=2)),
    "TP 2, EP 2, ETP 1": (2, parallel(tp=2, ep=2, etp=1)),
    "TP 4, EP 4, ETP 1": (4, parallel(tp=4, ep=4, etp=1)),
    "TP 2, EP 4, ETP 1, ZeRO-1": (4, parallel(tp=2, ep=4, etp=1, strategy="optim")),
    "TP 2, EP 2, ETP 1, ZeRO-2 overlapped": (4, parallel(tp=2, ep=2, etp=1, strategy="optim_grads", reduce="true", gather="true")),
    "recomputed": (2, [*parallel(ep=2), "training.recompute_granularity=full"]),
    "in chunks": (4, [*parallel(ep=4), "moe.dispatch_buffer_factor=1"]),
    "8 ranks, TP 2, EP 4, ETP 2, ZeRO-2 overlapped": (
        8, parallel(tp=2, ep=4, etp=2, strategy="optim_grads", reduce="true", gather="true")),
    "8 ranks, TP 4, EP 8, ETP 1, ZeRO-1 overlapped": (
        8, parallel(tp=4, ep=8, etp=1, strategy="optim", reduce="true", gather="true")),
}
# The order in which choices are dropped depends on the layout of a micro-batch only, so few layouts tell.
FEW_LAYOUTS = ("1 rank", "EP 4", "TP 2, EP 2, ETP 1")


# Their bytes depend on what routers choose.
ROUTED = ("dispatch", "combine", "dispatch_backward", "combine_backward", "dispatch_again", "combine_again", "dispatch_plan")
UNPLANNED = ("grad_norm", "loss_weight", "step_flags")


def check_traffic(records, name, unequal=()):
    """Measured bytes are the planned ones, for every purpose but those given."""
    for record in records:
        for purpose, sent in record["traffic"].items():
            if purpose not in UNPLANNED and purpose not in unequal:
                check(sent["bytes"] == sent["planned_bytes"],
                      f"{name}: {purpose} of step {record['step']}: {sent['bytes']} of {sent['planned_bytes']} bytes")


def traffic(lab, arguments):
    """With experts in turn every byte that a step sends is planned, dispatch included."""
    for label, (ranks, layout) in LAYOUTS.items():
        if label == "in chunks":
            continue
        for extra in ([], ["training.bf16=true", "moe.moe_shared_expert_intermediate_size=16", "moe.moe_layer_freq=[0,1]",
                           "moe.moe_router_pre_softmax=true", "moe.default_vectors.enabled=true"],
                      ["moe.moe_router_load_balancing_type=global_aux_loss", "training.global_batch_size=8"]):
            name = f"{label} {' '.join(extra)}"
            run_dir = lab.folder / f"traffic-{abs(hash(name))}"
            options = [o for setting in [*layout, *extra] for o in ("--set", setting)]
            lab.train(ranks, run_dir, *options, "--set", "moe.moe_router_force_load_balancing=true",
                      "--set", "training.train_iters=2", "--set", "checkpoint.save_interval=0")
            records = steps(run_dir)
            check_traffic(records, name)
            check(len(records) == 2 and (ranks == 1 or records[0]["traffic"]["gradients"]["bytes"] > 0),
                  f"{name}: gradients travel")


def layouts(lab, arguments):
    """The same global batches on 1, 2, 4 and 8 ranks over MPI."""
    for variant, settings in LAYOUT_VARIANTS.items():
        for dtype, tolerance in (("fp64", 1e-11), ("fp32", 1e-6)):
            if variant != "plain" and dtype == "fp32":
                continue
            alone = None
            for label, (ranks, layout) in LAYOUTS.items():
                if variant != "plain" and label not in FEW_LAYOUTS:
                    continue
                name = f"{variant}, {dtype}, {label}"
                run_dir = lab.folder / f"layout-{name.replace(', ', '-').replace(' ', '-')}"
                options = [o for setting in [*layout, *settings] for o in ("--set", setting)]
                lab.train(ranks, run_dir, "--set", f"training.compute_dtype={dtype}", *options,
                          "--set", "training.train_iters=3", "--set", "checkpoint.save_interval=0")
                records = steps(run_dir)
                check(len(records) == 3, f"{name}: three steps")
                check_traffic(records, name, ROUTED)
                if alone is None:
                    alone = records
                # In fp64 the following steps agree too: what updates carry on is the same.
                compared = zip(records, alone) if dtype == "fp64" else [(records[0], alone[0])]
                for record, other in compared:
                    growth = 1 if record["step"] == 1 else 1000
                    for key in ("loss", "grad_norm", "aux_loss", "z_loss"):
                        check(close_to(record[key], other[key], growth * tolerance),
                              f"{name}: {key} of step {record['step']}")
                if label == "in chunks":
                    check(records[0]["dispatch_chunks_added"] > 0, f"{name}: micro-batches are cut")
            if "capacity" in variant:
                check(alone[-1]["dropped_slots"] > 0, f"{variant}: slots are dropped")


def resume(lab, arguments):
    """Stop on request, resume: the same numbers as a run that never stopped (everything saved)."""
    full = ["--set", "checkpoint.pec.experts_per_checkpoint=8", "--set", "training.train_iters=20", *lab.layout(4)]
    straight, halved = lab.folder / "straight", lab.folder / "halved"
    lab.train(4, straight, *full)
    lab.train(4, halved, *full, "--set", "training.exit_interval=10", expect=75)
    resumed = lab.train(4, halved, *full, "--resume-from-failure")
    check("resumed at step 10" in resumed.stdout, "the resumed run says from where")
    keys = ("step", "loss", "grad_norm", "lr", "consumed_samples")
    check([[r[k] for k in keys] for r in steps(straight)] == [[r[k] for k in keys] for r in steps(halved)],
          "every step's loss, norm, rate and position are equal to the last bit")
    check(lab.inspect(halved, "verify").returncode == 0, "verify finds nothing")
    lab.train(4, halved, *full, expect=4)  # a run directory in use is refused without a resume flag
    empty = lab.train(4, lab.folder / "never", *full, "--resume-from-failure", "--set", "training.train_iters=2")
    check("fresh start" in empty.stdout, "nothing to resume: a fresh start is said")
    interrupted = lab.folder / "interrupted"
    job = subprocess.Popen(lab.command(4, interrupted, *lab.layout(4), "--set", "training.train_iters=100000"),
                           env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_steps(job, interrupted, 3)
    job.send_signal(signal.SIGUSR1)
    check(job.wait(timeout=60) == 75, "SIGUSR1 stops all ranks together with exit code 75")
    check(lab.inspect(interrupted, "verify").returncode == 0, "and leaves a whole checkpoint")


def wait_for_steps(job, run_dir, count, timeout=60):
    end = time.monotonic() + timeout
    while job.poll() is None and time.monotonic() < end:
        if (run_dir / "metrics.jsonl").exists() and len(steps(run_dir)) >= count:
            return
        time.sleep(0.01)


def ranks_of(job):
    """Process ids of the job's pecan-train processes."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "comm").read_text().strip() == "pecan-train":
                parent = [l for l in (entry / "status").read_text().splitlines() if l.startswith("PPid:")]
                if int(parent[0].split()[1]) == job.pid:
                    found.append(int(entry.name))
        except (OSError, IndexError):
            continue
    return sorted(found)


def memory(lab, arguments):
    """The resident memory of a rank grows by what its plan says, to a tenth."""
    large = ["model.hidden_size=512", "model.num_attention_heads=8", "model.num_query_groups=4", "moe.moe_ffn_hidden_size=1024",
             "model.num_layers=4", "training.seq_length=256", "training.micro_batch_size=2", "training.global_batch_size=4"]
    short = ["training.train_iters=2", "checkpoint.save_interval=0"]

    def high_water(name, ranks, settings):
        """Of the largest process of a run; a process of its own asks, since the system keeps the largest of all."""
        command = lab.command(ranks, lab.folder / name, *[o for setting in [*short, *settings] for o in ("--set", setting)])
        ask = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); " \
              "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
        done = lab.run([sys.executable, "-c", ask, *command], expect=0)
        return int(done.stdout.split()[-1])

    def planned(ranks, settings):
        done = lab.run([lab.bin / "pecan-plan", "--config", lab.config, "--world", str(ranks), "--json",
                        *[o for setting in [*short, *settings] for o in ("--set", setting)]], expect=0)
        return max(rank["total"] for rank in json.loads(done.stdout)["rank_bytes"])

    for label, ranks, layout in (
            ("one rank", 1, ["training.threads=1"]),
            ("recomputed", 1, ["training.threads=1", "training.recompute_granularity=full"]),
            ("TP 2, EP 2, ZeRO-1", 2, ["training.threads=1", *parallel(tp=2, ep=2, etp=1, strategy="optim")])):
        # What a process has before it builds a model: that of a run whose model is next to nothing.
        before = high_water(f"memory-{label}-small", ranks, layout) - planned(ranks, layout)
        plan = planned(ranks, [*large, *layout])
        grown = high_water(f"memory-{label}", ranks, [*large, *layout]) - before
        check(plan >= 500e6, f"{label}: the plan is {plan} bytes")
        check(abs(grown - plan) <= 0.1 * plan, f"{label}: {grown} bytes of {plan} planned ({100 * (grown / plan - 1):+.1f} %)")


def stop_a_rank(lab, label, ranks, settings_of_run):
    """SIGSTOP of a rank in the midst of steps: all others say whom they wait for, and the job ends with code 5."""
    run_dir = lab.folder / f"stopped, {label}"
    job = subprocess.Popen(lab.command(ranks, run_dir, *settings(*settings_of_run, "comm.timeout_s=2", "training.train_iters=100000",
                                                                 "checkpoint.save_interval=0")),
                           env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_steps(job, run_dir, 3)
    processes = ranks_of(job)
    check(len(processes) == ranks, f"{label}: {ranks} processes run")
    victim = processes[-1]
    environment = pathlib.Path(f"/proc/{victim}/environ").read_bytes().split(b"\0")
    rank = next(int(e.split(b"=")[1]) for e in environment if e.startswith(b"OMPI_COMM_WORLD_RANK="))
    os.kill(victim, signal.SIGSTOP)
    try:
        said = job.communicate(timeout=60)[1]
    finally:
        job.kill()
    check(job.returncode == 5, f"{label}: exit code {job.returncode} is 5")
    waits = re.findall(r"rank (\d+) waited 2 s in \w+(?: #\d+)? \([^)]*step \d+\): (.*?);", said)
    # mpirun lets the stopped one go on before it ends it, and so that one may speak too.
    check({int(w[0]) for w in waits} >= set(range(ranks)) - {rank}, f"{label}: all ranks but {rank} speak: {waits}")
    check(any(re.search(rf"rank(?: \d+,)* {rank}\b", w[1]) for w in waits), f"{label}: rank {rank} is named: {waits}")


def stopped(lab, arguments):
    for label in ("EP 4", "TP 2, EP 2, ETP 1, ZeRO-2 overlapped"):
        stop_a_rank(lab, label, *LAYOUTS[label])


def kill_loop(lab, arguments):
    """SIGKILL of a random rank at a random moment, often while a checkpoint is written: the run always ends whole."""
    for seed in range(arguments.seeds):
        rng = random.Random(seed)
        run_dir = lab.folder / f"kill-{seed}"
        options = [*lab.layout(rng.choice((2, 4))), "--set", "checkpoint.save_interval=1"]
        total = 14
        while True:
            resuming = (run_dir / "lock.json").exists()
            job = subprocess.Popen(
                lab.command(4, run_dir, *options, "--set", f"training.train_iters={total}",
                            *(["--resume-from-failure"] if run_dir.exists() else [])),
                env={**os.environ, **ENVIRONMENT}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if not resuming or rng.random() < 0.3:
                done = len(steps(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0
                wait_for_steps(job, run_dir, done + rng.randint(1, 8))
                time.sleep(rng.random() * 0.05)
                alive = ranks_of(job)
                if alive:
                    os.kill(rng.choice(alive), signal.SIGKILL)
            try:
                output, _ = job.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                job.kill()
                output, _ = job.communicate()
                check(False, f"seed {seed}: the job hangs")
                break
            if job.returncode == 0:
                break
            if job.returncode != 137:
                check(False, f"seed {seed}: exit code {job.returncode}")
                print(output, flush=True)
                break
        verify = lab.inspect(run_dir, "verify")
        last = steps(run_dir)[-1]["step"]
        check(verify.returncode == 0 and last == total, f"seed {seed}: step {last} of {total}, verify {verify.returncode}")
        if verify.returncode != 0:
            print(verify.stdout, flush=True)
        shutil.rmtree(run_dir, ignore_errors=True)


def settings(*pairs):
    return [option for pair in pairs for option in ("--set", pair)]


def records(run_dir, kind):
    lines = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record.get("kind") == kind]


def phases(lab, arguments):
    """SIGKILL at named points of a save: the run goes on from the old or the new checkpoint, or from memory."""
    memory_dir = lab.folder / "memory"
    memory_dir.mkdir()
    levels = {"storage": [], "memory": ["checkpoint.non_persistent_save_interval=1", f"checkpoint.memory_dir={memory_dir}",
                                        "checkpoint.pec.experts_per_snapshot=4"]}
    for level, keys in levels.items():
        common = ["checkpoint.save_interval=4"]
        for phase in ("snapshot", "persist", "vote", "commit", "committed", "retention"):
            run_dir = lab.folder / f"{level}-{phase}"
            rank = 1 if phase in ("snapshot", "persist", "vote") else 0
            options = [*lab.layout(2), *settings(*common, *keys)]
            # Saves beside training may be skipped, or take many steps: the run goes on until one meets the phase.
            total = 10 if level == "storage" else 100000
            # Training waits for a save to storage, so that it is under way when the rank dies.
            if level == "storage":
                options += settings("checkpoint.async_save=false")
            fault = f"fault.inject=[kill step=8 rank={rank} phase={phase}]"
            killed = lab.train(2, run_dir, *options, *settings(fault, f"training.train_iters={total}"), expect=None)
            check(killed.returncode == 137, f"{level}, {phase}: killed ({killed.returncode})")
            if level == "memory":
                total = steps(run_dir)[-1]["step"] + 10
            lab.train(2, run_dir, *options, *settings(f"training.train_iters={total}"), "--resume-from-failure")
            step = records(run_dir, "recovery")[-1]["step"]
            if level == "storage":
                wanted = 8 if phase in ("committed", "retention") else 4
                check(step == wanted, f"{level}, {phase}: goes on from step {step}, {wanted} expected")
            else:
                check(step >= 1, f"{level}, {phase}: goes on from step {step}, of memory or storage")
            verify = lab.inspect(run_dir, "verify")
            last = steps(run_dir)[-1]["step"]
            check(verify.returncode == 0 and last == total, f"{level}, {phase}: step {last}, verify {verify.returncode}")
            left = list(memory_dir.iterdir())
            check(not left, f"{level}, {phase}: nothing is left in memory {left}")


# Selection, byte mode, sharding and levels, each with each other at least once.
POLICIES = {
    "sequential, eq6, rank0": ["checkpoint.pec.sharding=rank0"],
    "sequential, master_full, equal, memory": ["training.bf16=true", "checkpoint.pec.always_saved=[master]",
                                               "checkpoint.pec.sharding=equal", "MEMORY"],
    "load_aware, weights_full, adaptive": ["training.bf16=true", "checkpoint.pec.always_saved=[weight]",
                                           "checkpoint.pec.selection=load_aware"],
    "load_aware, eq6, memory": ["training.bf16=true", "checkpoint.pec.selection=load_aware", "MEMORY"],
    "auto, eq6": ["checkpoint.pec.selection=auto"],
    "auto, weights_full, memory": ["training.bf16=true", "checkpoint.pec.always_saved=[weight]",
                                   "checkpoint.pec.selection=auto", "MEMORY"],
    "full": ["checkpoint.pec.selection=full", "checkpoint.pec.experts_per_checkpoint=0"],
    "full, memory": ["checkpoint.pec.selection=full", "checkpoint.pec.experts_per_checkpoint=0", "MEMORY"],
    "Dynamic-K": ["checkpoint.pec.experts_per_checkpoint=1", "checkpoint.pec.dynamic_k=true"],
}


def policies(lab, arguments):
    """Each policy, byte mode, sharding and level trains through a failure; with all experts saved nothing is lost."""
    memory_dir = lab.folder / "memory"
    memory_dir.mkdir()
    memory_level = ["checkpoint.non_persistent_save_interval=1", f"checkpoint.memory_dir={memory_dir}"]
    base = ["training.train_iters=12", "training.global_batch_size=8", "checkpoint.save_interval=2"]
    # Beside training, steps must be longer than a save, or few of them are saved.
    slow = ["training.train_iters=24", "training.global_batch_size=256", "model.num_layers=4"]
    lab.train(4, lab.folder / "undisturbed", *lab.layout(2), *settings(*base, "checkpoint.save_interval=0"))
    undisturbed = steps(lab.folder / "undisturbed")
    for name, keys in POLICIES.items():
        run_dir = lab.folder / re.sub(r"\W+", "-", name)
        in_memory = "MEMORY" in keys
        keys = [key for key in keys if key != "MEMORY"]
        keys += [*slow, *memory_level] if in_memory else ["checkpoint.async_save=false"]
        total = 24 if in_memory else 12
        options = [*lab.layout(2), *settings(*base, *keys)]
        killed = lab.train(4, run_dir, *options, *settings(f"fault.inject=[kill step={total - 2} rank=2]"), expect=None)
        check(killed.returncode == 137, f"{name}: killed ({killed.returncode})")
        lab.train(4, run_dir, *options, "--resume-from-failure")
        recovery = records(run_dir, "recovery")[-1]
        last = steps(run_dir)[-1]
        verify = lab.inspect(run_dir, "verify")
        check(verify.returncode == 0 and last["step"] == total, f"{name}: step {last['step']}, verify {verify.returncode}")
        check(sum(recovery["lost_slots"]) == 0 or "full" not in name.split(","), f"{name}: lost {recovery['lost_slots']}")
        if "full" in name.split(","):
            check(in_memory or last["loss"] == undisturbed[-1]["loss"], f"{name}: the last loss is that of the undisturbed run")
        else:
            check(sum(recovery["lost_slots"]) > 0 and recovery["plt"] > 0, f"{name}: PLT {recovery['plt']:.4f}")
        if name.endswith("weights_full, adaptive"):
            check(recovery["plt_weights"] == 0 and recovery["rounded_units"] > 0, f"{name}: weights are current")
        if name == "Dynamic-K":
            check(recovery["experts_per_checkpoint"] > 1, f"{name}: K {recovery['experts_per_checkpoint']}")
        check(not list(memory_dir.iterdir()), f"{name}: nothing is left in memory")


def shards(run_dir, step, kind):
    return sorted((run_dir / "checkpoints" / f"step-{step:08d}").glob(f"rank-*.{kind}*"))


def flip(path, position=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 0x10
    path.write_bytes(bytes(data))


def damage(lab, arguments):
    """Damage of the newest checkpoint is found, named and worked round, and the branch given up is never used again."""
    base = lab.folder / "base"
    # Training waits for the files, so that no save is skipped on a busy machine.
    options = [*lab.layout(4), "--set", "training.train_iters=50", "--set", "checkpoint.async_save=false"]
    # A stop on request would save everything.
    lab.train(4, base, *options, *settings("fault.inject=[kill step=11 rank=1]"), expect=None)

    def truncate(path):
        os.truncate(path, path.stat().st_size // 2)

    cases = (("a flipped bit in a state shard", "state.h5", flip), ("a truncated state shard", "state.h5", truncate),
             ("a missing state shard", "state.h5", os.unlink), ("a flipped bit in an experts shard", "experts.h5", flip),
             ("a missing experts shard", "experts.h5", os.unlink), ("a flipped bit in the manifest", None, flip))
    for name, kind, harm in cases:
        run_dir = lab.folder / "damaged"
        shutil.copytree(base, run_dir)
        victim = (run_dir / "checkpoints/step-00000010/manifest.json") if kind is None else shards(run_dir, 10, kind)[1]
        harm(victim)
        verify = lab.inspect(run_dir, "verify")
        check(verify.returncode == 4 and "step-00000010" in verify.stdout, f"{name}: verify names it, exit code 4")
        done = lab.train(4, run_dir, *options, "--resume-from-failure")
        check("step-00000010" in done.stdout, f"{name}: the resumed run says what it found")
        resumed = [r for r in steps(run_dir) if r["incarnation"] == 1]
        first = resumed[0]["step"]
        # Lost experts come from older copies; lost non-expert state takes the whole run back to an older checkpoint.
        check(first == 11 if kind == "experts.h5" else 1 < first < 11, f"{name}: continued at step {first}")
        check(resumed[-1]["step"] == 50, f"{name}: trained to the end")
        after = lab.inspect(run_dir, "verify")
        check(after.returncode == 0, f"{name}: forty steps later no damage is left in use")
        if after.returncode != 0:
            print(after.stdout, flush=True)
        shutil.rmtree(run_dir)


def flipped_bits(lab, arguments):
    """verify names a flipped bit wherever it is in whatever file of a run's checkpoints."""
    run_dir = lab.folder / "flipped"
    lab.train(4, run_dir, *lab.layout(4), "--set", "training.train_iters=8", "--set", "checkpoint.async_save=false")
    check(lab.inspect(run_dir, "verify").returncode == 0, "an undamaged run: exit code 0")
    rng = random.Random(3)
    files = sorted(f for f in (run_dir / "checkpoints").rglob("*") if f.is_file())
    for file in files:
        position = rng.randrange(file.stat().st_size)
        flip(file, position)
        done = lab.inspect(run_dir, "verify")
        name = f"{file.parent.name}/{file.name}"
        named = file.name in done.stdout or file.parent.name in done.stdout
        check(done.returncode == 4 and named, f"{name}, byte {position}: found and named")
        flip(file, position)
    check(len(files) > 20, f"{len(files)} files were tried")


def bad_input(lab, arguments):
    """Message and exit code of what users get wrong."""
    broken = lab.folder / "broken.yaml"

    def refused(name, code, fragment, *options, config=None, ranks=1, run_dir=None):
        done = lab.train(ranks, run_dir or lab.folder / "refused", *options, expect=code, config=config)
        check(fragment in done.stdout, f"{name}: says \"{fragment}\"")
        if fragment not in done.stdout:
            print(done.stdout, flush=True)
        check(done.stdout.count("pecan-train: ") == 1, f"{name}: said once")

    broken.write_text("model: {num_layers: 2\ntraining: [")
    refused("malformed YAML", 2, "broken.yaml", config=broken)
    refused("unknown key", 2, "num_layers", "--set", "model.num_layer=2")
    refused("impossible layout", 2, "num_experts=8", *lab.layout(3), "--set", "training.global_batch_size=3", ranks=3)
    refused("missing file", 2, "nowhere.yaml", config=lab.folder / "nowhere.yaml")
    refused("a feature that is not there", 2, "tensor_model_parallel_size", "--set",
            "parallel.tensor_model_parallel_size=2", ranks=2)

    for suffix in (".bin", ".idx", ".json"):
        shutil.copy(f"{lab.folder}/corpus_train{suffix}", f"{lab.folder}/cut{suffix}")
    index = lab.folder / "cut.idx"
    os.truncate(index, index.stat().st_size - 5)
    refused("a truncated .idx", 3, "cut.idx", "--set", f"data.data_path={lab.folder}/cut")
    refused("no corpus", 3, "absent", "--set", f"data.data_path={lab.folder}/absent")

    used = lab.folder / "used"
    lab.train(2, used, *lab.layout(2), "--set", "training.train_iters=4")
    refused("a run directory of another model", 4, "another model", "--resume-from-failure", "--set",
            "model.hidden_size=64", "--set", "training.train_iters=8", *lab.layout(2), ranks=2, run_dir=used)
    refused("no write permission", 4, "/proc/pecan", run_dir=pathlib.Path("/proc/pecan"))

    ruined = lab.folder / "ruined"
    shutil.copytree(used, ruined)
    for shard in (ruined / "checkpoints").glob("step-*/rank-*.h5"):
        os.truncate(shard, 100)
    refused("nothing recoverable", 4, "recover", "--resume-from-failure", "--set", "training.train_iters=8",
            *lab.layout(2), ranks=2, run_dir=ruined)
    check(lab.inspect(ruined, "verify").returncode == 4, "verify of a ruined run: exit code 4")
    check(lab.inspect(lab.folder / "nothing").returncode == 4, "inspecting nothing: exit code 4")
    check(lab.inspect(used, "gaze").returncode == 2, "an unknown view: exit code 2")
    for view in (["summary"], ["list"], ["show", "4"], ["experts"], ["coverage"], ["verify"]):
        text, data = lab.inspect(used, *view), lab.inspect(used, *view, "--json")
        check(text.returncode == 0 and data.returncode == 0 and json.loads(data.stdout)["schema"] == 1,
              f"inspect {view[0]} as text and JSON")
    full_disk(lab)


def full_disk(lab):
    """A full disk never stops training; it is reported and the next save is tried."""
    disk = lab.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)], stderr=subprocess.DEVNULL)
    if mounted.returncode != 0:
        print("skipped: a full disk (mounting a small file system needs root)")
        return
    try:
        done = lab.run(lab.command(2, disk / "run", *lab.layout(2), "--set", "training.train_iters=6"), expect=4)
        check("space" in done.stdout.lower(), "a full disk: the failed save is reported")
        check("the state of step 6 could not be written" in done.stdout, "a full disk: at the end it is an error")
        # The metrics are on that disk too, and may lack lines.
        check(re.search(r"step +6/6 ", done.stdout), "a full disk: training went on to its end")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def bf16_paths(lab, arguments):
    """bf16 where the processor cannot multiply it: resume to the bit, and the losses of a processor that can."""
    options = ["--set", "training.bf16=true", "--set", "checkpoint.pec.experts_per_checkpoint=8", "--set", "training.train_iters=10",
               *lab.layout(2)]
    losses = lambda run_dir: [(r["loss"], r["grad_norm"]) for r in steps(run_dir)]
    straight, halved, native = (lab.folder / name for name in ("straight", "halved", "native"))
    os.environ["PECAN_MAX_ISA"] = "avx2"
    lab.train(2, straight, *options)
    lab.train(2, halved, *options, "--set", "training.exit_interval=5", expect=75)
    lab.train(2, halved, *options, "--resume-from-failure")
    check(losses(straight) == losses(halved), "converted: resumed losses are equal to the last bit")
    del os.environ["PECAN_MAX_ISA"]
    if "avx512_bf16" not in pathlib.Path("/proc/cpuinfo").read_text():
        print("skipped: this processor has no AVX512-BF16 to compare with", flush=True)
        lab.skipped = True
        return
    lab.train(2, native, *options)
    pairs = list(zip(losses(straight), losses(native)))
    check(len(pairs) == 10 and all(close_to(a[0], b[0], 1e-2) for a, b in pairs), "losses agree within bf16's rounding")
    check(any(a != b for a, b in pairs), "the two paths are not the same")


def long_line(lab, arguments):
    """A line of 100 MB with spaces becomes a tokenizer and tokens that spell it again, in bounded memory."""
    rng = random.Random(3)
    words = " ".join("".join(rng.choices("abcdefghij", k=rng.randint(1, 9))) for _ in range(500_000))
    line = (words + " ") * (100_000_000 // (len(words) + 1) + 1)
    text = lab.folder / "line.txt"
    text.write_text(line + "x\n\n" + "\n\n".join(f"short document {i}" for i in range(300)) + "\n")
    lab.run([lab.bin / "pecan-data", "prepare", "--input", text, "--output", lab.folder / "line", "--vocab-size", "400"],
            expect=0, timeout=600)
    check(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2_000_000, "less than 2 GB of memory")
    told = [json.loads((lab.folder / f"line_{part}.json").read_text()) for part in ("train", "valid")]
    check(sum(t["bytes"] for t in told) >= len(line), "all bytes are told")


def main():
    parser = argparse.ArgumentParser()
    suites = {f.__name__: f for f in (layouts, traffic, memory, stopped, resume, kill_loop, phases, policies, damage, flipped_bits, bad_input, bf16_paths, long_line)}
    parser.add_argument("suite", choices=suites)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--mpiexec", default="mpirun")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    lab = Lab(arguments)
    try:
        suites[arguments.suite](lab, arguments)
    finally:
        lab.close()
    print(f"{len(failures)} failures")
    return 1 if failures else 77 if lab.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
