#!/usr/bin/python3
"""A campaign of faults against one supervised run on four virtual hosts of two ranks each.

usage: campaign.py --bin DIR --mpiexec PATH [--faults N] [--seed S] [--report FILE] [--only KIND,KIND] [--keep]

Each fault strikes while the run trains; then the run must train on by itself, from no older step than was committed, and
every item that it restores must have the content that was recorded at the step it is said to come from. In the end the run
finishes, the checkpoints verify, and nothing is left: no process, no snapshot, no temporary file.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import e2e  # noqa: E402
import hosts  # noqa: E402
from e2e import check  # noqa: E402

TIME_LIMIT_S = 180  # of one recovery: a hang, on however slow a machine
REPLICAS = 2
# Numbers of docs/reliability.md. How often each kind comes in a round of thirty.
KINDS = {
    "F1": ("a rank is killed", 6), "F2": ("a host is lost with its memory", 5), "F3": ("two hosts are lost at once", 2),
    "F4": ("a host's network is cut", 1), "F5": ("a rank stands still", 1), "F6": ("the supervisor is killed", 2),
    "F7": ("a rank is killed while the run recovers", 2), "F8": ("a rank is killed in a phase of a save", 6),
    "F9": ("a shard is corrupted, then two hosts are lost", 2), "F10": ("the disk is full, then a rank is killed", 1),
    "F11": ("the run is stopped and started again", 1), "F15": ("all hosts but one are lost at once", 1),
}
PHASES = ["snapshot", "persist", "vote", "commit", "committed", "retention"]
SETTINGS = [
    # More than faults come in, and not so many that each start shuffles millions of samples on all ranks, as long as a hang would take.
    "training.train_iters=50000", "training.global_batch_size=8", "optimizer.lr_decay_style=constant",
    "parallel.expert_model_parallel_size=4", "checkpoint.save_interval=12", "checkpoint.non_persistent_save_interval=3",
    f"checkpoint.replication_factor={REPLICAS}", "checkpoint.pec.experts_per_checkpoint=2",
    "checkpoint.pec.experts_per_snapshot=4", "checkpoint.fallback_copies=2", "logging.content_hash_interval=1",
    # A fault must not make replicas differ, which hashes of the first holder's copy alone would show late or never.
    "training.check_weight_hash_across_dp_replicas_interval=1",
    "logging.log_interval=50", "comm.timeout_s=10", "elastic.heartbeat_timeout_s=20", "elastic.probe_timeout_s=10",
    "elastic.restart_backoff_s=0.1", "elastic.max_restarts=8",
    "elastic.layouts=[{world_size: 8}, {world_size: 4}, {world_size: 2, expert_model_parallel_size: 2}]",
]


def settings(*pairs):
    return [word for pair in pairs for word in ("--set", pair)]


class Metrics:
    """metrics.jsonl as it grows."""

    def __init__(self, path):
        self.path = path
        self.offset = 0
        self.records = []
        self.cut = 0                # lines that a kill has cut short

    def read(self):
        """New whole records, with the time at which they were seen."""
        if not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self.offset += end
        new = []
        for line in data[:end].splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut short by a kill
                self.cut += 1
                continue
            record["seen"] = time.monotonic()
            new.append(record)
        self.records += new
        return new


class Campaign:
    def __init__(self, lab, virtual, arguments):
        self.lab = lab
        self.hosts = virtual
        self.rng = random.Random(arguments.seed)
        self.run_dir = lab.folder / "run"
        self.log = lab.folder / "log"
        self.log.touch()
        self.metrics = Metrics(self.run_dir / "metrics.jsonl")
        self.contents = {}          # (incarnation, step) -> items
        self.parents = {}           # incarnation -> (incarnation, step) that it continued
        self.incarnation = -1
        self.step = 0
        self.steps_here = 0         # of this incarnation
        self.commits_here = 0
        self.stored = 0             # newest step that is committed in storage, and in memory
        self.in_memory = 0
        self.memory_lost = False    # what is in memory need not come back
        self.floor = None           # the newest checkpoint is corrupt, and this one is not
        self.down = []              # hosts that were taken away
        self.outcomes = collections.defaultdict(list)
        self.launcher = None
        self.restored = {}          # items as the last recovery has loaded them, and which that was
        self.restored_by = None
        self.compared = 0
        self.unrecorded = 0
        self.recovery = None
        self.struck = 0.0           # when the last fault came
        self.lost_steps = 0
        self.trained = 0
        self.starts = []            # of each that came to train: after what, which its first and last step were, and when each was seen
        self.kind = ""              # of the last fault
        self.stopped = False        # the next start follows a stop on request
        self.taken = 0              # hosts whose memory was lost since the last start
        self.damaged = 0            # checkpoints that were damaged since then, so that no step can be had from them
        self.began = time.monotonic()
        (lab.folder / "hosts.txt").write_text("".join(f"{name} slots=2\n" for name in virtual.names))

    # ---- the run

    def start(self, fault="", *more):
        self.steps_here = self.commits_here = 0
        command = [self.lab.bin / "pecan-launch", "--config", self.lab.config, "--hosts", self.lab.folder / "hosts.txt",
                   "--run-dir", self.run_dir, "--agent", self.hosts.agent, *settings(*SETTINGS, *more), "--",
                   *self.hosts.mpi_options()]
        environment = {**os.environ, **e2e.ENVIRONMENT, **self.hosts.environment(), "TMPDIR": str(self.lab.folder / "tmp")}
        environment.pop("OMPI_MCA_btl")
        if fault:
            environment["PECAN_FAULT"] = fault
        (self.lab.folder / "tmp").mkdir(exist_ok=True)
        with open(self.log, "ab") as log:
            self.launcher = subprocess.Popen([str(c) for c in command], env=environment, stdin=subprocess.DEVNULL,
                                             stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def stop(self, expect=75):
        self.launcher.send_signal(signal.SIGTERM)
        try:
            code = self.launcher.wait(TIME_LIMIT_S)
        except subprocess.TimeoutExpired:
            code = "none: it hangs"
        if code != expect:
            self.fail(f"the supervisor ended with {code} instead of {expect}")
        self.look()
        self.stopped = True

    def ranks(self, names=None):
        return [pid for name in names or self.hosts.names for pid in self.hosts.pids(name, "pecan-train")]

    def fail(self, text):
        check(False, text)
        print("the end of the log:\n" + self.log.read_text(errors="replace")[-6000:], flush=True)
        raise SystemExit(1)

    # ---- what the metrics say

    def look(self):
        for record in self.metrics.read():
            kind = record.get("kind")
            if kind == "recovery":
                self.take_recovery(record)
            elif kind == "content":
                key = (record["incarnation"], record["step"])
                if record["recovered"]:
                    self.restored, self.restored_by = record["items"], record["incarnation"]
                if not record["recovered"] or key not in self.contents:
                    self.contents[key] = {name: item["hash"] for name, item in record["items"].items()}
            elif kind == "divergence":
                self.fail(f"nothing but what was injected may go wrong: {record}")
            elif kind == "step":
                if record["incarnation"] > self.incarnation:
                    self.incarnation, self.steps_here, self.commits_here = record["incarnation"], 0, 0
                if not self.starts or record["incarnation"] != self.starts[-1]["incarnation"]:
                    self.starts.append({"incarnation": record["incarnation"], "after": "stop" if self.stopped else self.kind, "seen": [],
                                        "nodes": self.taken, "damaged": self.damaged, "first_step": record["step"]})
                    self.stopped, self.taken, self.damaged = False, 0, 0
                self.step = record["step"]
                self.starts[-1]["last_step"] = record["step"]
                self.starts[-1]["seen"].append(record["seen"])
                self.steps_here += 1
                self.trained += 1
            elif kind in ("checkpoint", "snapshot") and record["committed"]:
                self.commits_here += 1
                if kind == "checkpoint":
                    self.stored = max(self.stored, record["step"])
                self.in_memory = max(self.in_memory, record["step"])

    def take_recovery(self, record):
        self.recovery = record
        self.compare(record)
        self.incarnation, self.steps_here, self.commits_here = record["incarnation"], 0, 0
        expected = self.stored if self.memory_lost else max(self.stored, self.in_memory)
        if self.floor is not None:
            expected = self.floor
        self.memory_lost, self.floor = False, None
        if record["step"] < expected:
            self.fail(f"continued from step {record['step']}, but step {expected} was committed "
                      f"(storage {self.stored}, memory {self.in_memory}); {record['damages']}")
        self.lost_steps += max(0, self.step - record["step"])
        self.step = record["step"]
        self.stored = min(self.stored, record["step"])
        self.in_memory = record["step"]

    def compare(self, recovery):
        """Each restored item against what was recorded at the step that it is said to come from."""
        stale = {(s["unit"], s["group"]): (s["incarnation"], s["step"]) for s in recovery["stale"]}
        whole = (recovery["from_incarnation"], recovery["step"])
        if self.restored_by != recovery["incarnation"]:
            self.fail(f"there is no record of what incarnation {recovery['incarnation']} has loaded, the last is of {self.restored_by}")
        differing = []
        for name, item in self.restored.items():
            version = stale.get((item["unit"], item["group"]), whole)
            recorded = self.contents.get(version)
            if recorded is None and version[1] > max((s for i, s in self.contents if i == version[0]), default=0):
                # Every rank had sealed its snapshot when the fault struck, and rank 0 had not yet recorded the step.
                self.unrecorded += 1
                continue
            if recorded is None:
                self.fail(f"{name} is said to come from {version}, of which there is no record")
            if recorded[name] != item["hash"]:
                differing.append(f"{name} of {version}")
            self.compared += 1
        if differing:
            self.fail(f"{len(differing)} of {len(self.restored)} items do not have the content of the step that they are said to come "
                      f"from: {', '.join(differing[:8])}")

    def wait(self, condition, what):
        deadline = time.monotonic() + TIME_LIMIT_S
        while time.monotonic() < deadline:
            self.look()
            if condition():
                return
            if self.launcher.poll() is not None:
                self.look()
                if condition():
                    return
                self.fail(f"the supervisor ended with {self.launcher.returncode} while {what}")
            time.sleep(0.02)
        self.fail(f"nothing came in {TIME_LIMIT_S} s: {what}")

    def train_on(self, steps, commits=1):
        """Lets the run train so many steps, and commit something, since it was started last."""
        self.wait(lambda: self.steps_here >= steps and self.commits_here >= commits, "the run should train on")

    # ---- the faults; each returns when the run is hit

    def kill_rank(self):
        os.kill(self.rng.choice(self.ranks()), signal.SIGKILL)

    def lose(self, names):
        self.memory_goes_with(names)
        for name in names:
            self.hosts.lose(name)
        self.down += names

    def memory_goes_with(self, names):
        """Neighbours keep each other's copies; one host alone has no neighbour."""
        used = len(self.used_hosts())
        self.memory_lost = len(names) >= min(REPLICAS, used)
        self.taken = 4 if len(names) >= used else len(names)

    def used_hosts(self):
        return [name for name in self.hosts.names if self.ranks([name])]

    def strike(self, kind):
        """One fault, on a run that trains."""
        if kind == "F1":
            self.kill_rank()
        elif kind == "F2":
            self.lose([self.rng.choice(self.used_hosts())])
        elif kind == "F3":
            self.lose(self.neighbours())
        elif kind == "F4":
            name = self.rng.choice(self.used_hosts())
            self.memory_goes_with([name])
            self.hosts.cut(name)
            self.down.append(name)
        elif kind == "F5":
            os.kill(self.rng.choice(self.ranks()), signal.SIGSTOP)
        elif kind == "F6":
            self.launcher.kill()
            self.launcher.wait()
            self.start()
        elif kind == "F7":
            self.kill_rank()
            before = set(self.ranks())
            deadline = time.monotonic() + TIME_LIMIT_S
            while time.monotonic() < deadline and not set(self.ranks()) - before:
                time.sleep(0.05)
            time.sleep(self.rng.uniform(0, 3.5))
            born = sorted(set(self.ranks()) - before)
            if born:
                os.kill(self.rng.choice(born), signal.SIGKILL)
        elif kind == "F8":
            phase = self.phases.popleft()
            self.phases.append(phase)
            rank = 0 if phase in PHASES[3:] else self.rng.randrange(len(self.ranks()))
            self.restart_with(f"kill step={self.step + 8} rank={rank} phase={phase} start=NEXT")
            return phase
        elif kind == "F9":
            self.corrupt()
            self.lose(self.neighbours())
        elif kind == "F10":
            self.restart_with(f"fill_disk step={self.step + 4} rank=every start=NEXT")
            self.train_on(40, commits=2)
            self.struck = time.monotonic()
            self.kill_rank()
        elif kind == "F11":
            self.stop()
            self.start()
        elif kind == "F15":
            used = self.used_hosts()
            used.remove(self.rng.choice(used))
            self.lose(used)
        return ""

    def restart_with(self, fault):
        """In-process faults are given when the supervisor starts."""
        self.stop()
        lock = json.loads((self.run_dir / "lock.json").read_text())
        self.start(fault.replace("NEXT", str(lock["incarnation"] + 1)))
        before = self.incarnation
        self.wait(lambda: self.incarnation > before and self.steps_here > 0, "a start with a fault in it")
        self.struck = time.monotonic()

    def neighbours(self):
        used = self.used_hosts()
        first = self.rng.randrange(len(used))
        return sorted({used[first], used[(first + 1) % len(used)]})

    def corrupt(self):
        """Flips a bit of a shard in the newest checkpoint, which is not the only one."""
        def candidates():
            return sorted(path.parent for path in (self.run_dir / "checkpoints").glob("step-????????/manifest.json"))
        self.wait(lambda: len(candidates()) > 1, "the run should have two checkpoints")
        newest = candidates()[-1]
        file = self.rng.choice(sorted(newest.glob("*.h5")))
        data = bytearray(file.read_bytes())
        data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        file.write_bytes(data)
        # Experts have older copies; other state has none but that of another step.
        self.damaged = int(file.name.endswith(".state.h5"))
        # The run may fall back to an older checkpoint, but no further.
        self.floor = int(candidates()[-2].name[5:])

    def run(self, kinds):
        self.phases = collections.deque(PHASES)
        self.start()
        for number, kind in enumerate(kinds):
            # Hosts come back two faults after they were lost; too few to go on with never are away.
            while len(self.down) > 2 or (self.down and (number % 2 == 0 or kind in ("F3", "F9"))):
                self.hosts.bring_back(self.down.pop(0))
            self.train_on(self.rng.randint(6, 20), commits=self.rng.randint(1, 3))
            if kind in ("F3", "F9") and len(self.used_hosts()) < 4:
                # For two hosts to be lost, the others must have come back into use.
                self.stop()
                self.start()
                self.train_on(6)
            before, compared = self.incarnation, self.compared
            self.struck, self.kind = time.monotonic(), kind
            detail = self.strike(kind)
            if kind in ("F8", "F10"):  # the fault came in by a start of its own
                before = self.incarnation
            self.wait(lambda: self.incarnation > before and self.steps_here > 0, f"the run should recover from {kind}")
            seconds = time.monotonic() - self.struck
            self.outcomes[kind].append((seconds, self.lost_steps))
            recovery = self.recovery
            print(f"ok    {number + 1:3} {kind} {KINDS[kind][0]}{' (' + detail + ')' if detail else ''}: start {self.incarnation + 1} "
                  f"from step {recovery['step']}, {len(recovery['stale'])} older copies, PLT of it {100 * recovery['plt_now']:.3f} %, "
                  f"{len(recovery['damages'])} damages, {self.compared - compared} items compared, {seconds:.1f} s", flush=True)

    def finish(self):
        """To an end of its own, and nothing is left."""
        for name in self.down:
            self.hosts.bring_back(name)
        self.train_on(3)
        self.stop()
        target = self.step + 5
        self.start("", f"training.train_iters={target}")
        code = self.launcher.wait(TIME_LIMIT_S)
        self.look()
        check(code == 0 and self.step == target, f"the run reaches its last step (exit code {code}, step {self.step} of {target})")
        verify = self.lab.inspect(self.run_dir, "verify")
        check(verify.returncode == 0, "what is left of the checkpoints verifies: " + verify.stdout.strip().splitlines()[-1])
        check(not self.ranks(), f"no process is left ({len(self.ranks())})")
        check(not self.hosts.segments(), f"no snapshot is left in memory: {self.hosts.segments()[:3]}")
        left = [str(p) for p in self.run_dir.rglob("*") if p.name.endswith((".tmp", ".partial")) or "removed-" in p.name]
        check(not left, f"no temporary file is left: {left[:3]}")
        check(self.compared > 10 * self.unrecorded, f"{self.compared} restored items were compared with what was recorded; "
              f"of {self.unrecorded} the step was not recorded yet")


def schedule(count, rng, only):
    """`count` faults in the proportions of KINDS, in random order."""
    kinds = []
    while len(kinds) < count:
        some = [kind for kind, (_, often) in KINDS.items() for _ in range(often) if not only or kind in only]
        rng.shuffle(some)
        kinds += some
    return kinds[:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--mpiexec", required=True)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="kinds, like F1,F8")
    parser.add_argument("--report", type=pathlib.Path, help="writes the figures as a Markdown table")
    parser.add_argument("--keep", action="store_true", help="the folder, for a look at it")
    arguments = parser.parse_args()
    lab = e2e.Lab(arguments)
    try:
        try:
            with hosts.Hosts(lab.folder / "hosts") as virtual:
                campaign = Campaign(lab, virtual, arguments)
                try:
                    campaign.run(schedule(arguments.faults, campaign.rng, [k for k in arguments.only.split(",") if k]))
                    campaign.finish()
                finally:
                    if campaign.launcher and campaign.launcher.poll() is None:
                        campaign.launcher.kill()
                        campaign.launcher.wait()
                print(report(campaign), flush=True)
                if arguments.report:
                    arguments.report.write_text(report(campaign) + "\n")
        except hosts.CannotMakeHosts as problem:
            print(f"skipped: no virtual hosts here ({problem})")
            return 77
    finally:
        if arguments.keep:
            print(f"kept {lab.folder}")
        else:
            lab.close()
    if e2e.failures:
        print(f"{len(e2e.failures)} checks failed")
    return 1 if e2e.failures else 0


def goodput(campaign):
    """Goodput measured, and simulated with figures of half of the steps, saves and pauses.

    A step takes what lies between two records of it, stalls and all, and a pause what lies between the records of two starts, with what a stop on
    request saves. Measured: steps that count, times the duration of a step, over all seconds. Simulated: each failure half a step after as many steps
    as it struck after, with as many hosts' memory and damaged checkpoints, for a pause is much longer than the training between two, and at the time of
    a clock it would strike another pause; each stop at the end of the step that it ended. The halves are drawn at random, of pauses from each kind of fault:
    some are rare and long. Of saves they are those of every second start.
    """
    starts = campaign.starts
    if len(starts) < 20:
        return "Too few failures for a goodput."
    draw = random.Random(1)

    def half(values):
        return draw.sample(values, (len(values) + 1) // 2)

    steps = [b - a for start in starts for a, b in zip(start["seen"], start["seen"][1:])]
    step_s, seen_step_s = statistics.fmean(steps), statistics.fmean(half(steps))
    pauses = collections.defaultdict(list)
    for before, start in zip(starts, starts[1:]):
        pauses[start["after"]].append(start["seen"][0] - before["seen"][-1] - step_s)
    num_pauses = len(starts) - 1
    pause_s = sum(sum(of_kind) for of_kind in pauses.values()) / num_pauses
    seen_pause_s = sum(statistics.fmean(half(of_kind)) * len(of_kind) for of_kind in pauses.values()) / num_pauses
    trained = sum(len(s["seen"]) for s in starts)
    counted = starts[-1]["last_step"] - starts[0]["first_step"] + 1
    measured = counted * step_s / (trained * step_s + num_pauses * pause_s)
    at, events, half_s = 0, [], seen_step_s / 2
    restart_s = seen_pause_s - half_s  # a failure's pause begins with what is left of a step
    for start in starts:
        if start["after"] == "stop":
            events += ["--stop-at", f"{at - half_s:.6f}"]
            at += restart_s
        elif start is not starts[0]:
            events += ["--fail-at", f"{at + half_s:.6f}:{start['nodes']}:{start['damaged']}"]
            at += half_s + restart_s
        at += len(start["seen"]) * seen_step_s

    records = campaign.lab.folder / "seen"
    records.mkdir(exist_ok=True)
    seen = {s["incarnation"] for s in starts[::2]}
    (records / "metrics.jsonl").write_text("".join(
        json.dumps(record) + "\n" for record in campaign.metrics.records
        if "kind" not in record or (record["kind"] != "content" and record.get("incarnation") in seen)))
    command = [campaign.lab.bin / "pecan-plan", "simulate", "--config", campaign.lab.config, *settings(*SETTINGS), "--world", 8, "--nodes", 4,
               "--from-run", records, "--steps", counted, *events, "--step-s", seen_step_s, "--restart-s", restart_s,
               "--detect-s", 0, "--restore-s", 0, "--startup-s", 0, "--stall-s", 0, "--full-snapshot-s", 0, "--full-persist-s", 0, "--commit-s", 0,
               "--json"]
    ran = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if ran.returncode != 0:
        return "pecan-plan simulate failed: " + ran.stderr
    predicted = json.loads(ran.stdout)["simulation"]["result"]
    stops = len(pauses["stop"])
    return (f"Goodput over {num_pauses - stops} failures and {stops} stops: measured {100 * measured:.1f} %, predicted {100 * predicted['ettr']['mean']:.1f} % "
            f"({100 * (predicted['ettr']['mean'] / measured - 1):+.1f} %) by `pecan-plan simulate` from figures of half of them: a step "
            f"{1e3 * seen_step_s:.0f} ms (of all {1e3 * step_s:.0f} ms), a pause {seen_pause_s:.1f} s (of all {pause_s:.1f} s); steps trained again: predicted "
            f"{predicted['lost_steps']['mean']:.0f}, measured {trained - counted}.")


def report(campaign):
    wall = time.monotonic() - campaign.began
    lines = ["| fault | times | recovery, median s | worst s |", "| --- | --- | --- | --- |"]
    for kind, (what, _) in KINDS.items():
        seconds = [s for s, _ in campaign.outcomes.get(kind, [])]
        if seconds:
            lines.append(f"| {kind} {what} | {len(seconds)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")
    total = sum(len(v) for v in campaign.outcomes.values())
    lines += ["", f"{total} faults, {total} recovered; {campaign.lost_steps} of {campaign.trained} trained steps were lost and trained again; "
              f"{campaign.compared} restored items compared; {campaign.metrics.cut} records cut short by kills; {wall:.0f} s", "", goodput(campaign)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
