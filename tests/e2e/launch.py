#!/usr/bin/python3
"""The supervisor on this machine: ranks killed and stopped, hosts lost and back or set aside, stops on request,
divergences, bad hosts files.

usage: launch.py --bin DIR --mpiexec PATH [--only TEXT]

Hosts are names that an agent of the test's own serves: it runs what it is given here, unless the host is marked as lost. One case
goes by ssh instead, to a server of the test's own, and one has virtual hosts with memory of their own; where these
cannot be had they are left out, and the exit code is 77.
"""
import argparse
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import e2e  # noqa: E402
import hosts  # noqa: E402
import ssh_server  # noqa: E402
from e2e import check  # noqa: E402

TIME_LIMIT_S = 120  # a hang, on however slow a machine
AGENT = """#!/bin/sh
host=$1; shift
if [ -e LOST/$host ]; then printf 'Welcome to %s\\r\\n%s: no route to host\\r\\n' $host $host >&2; exit 255; fi
# Daemons of one machine would meet in one session folder, which Open MPI does not expect.
export TMPDIR=LOST/$host.tmp
mkdir -p $TMPDIR
exec sh -c "$*"
"""
# In mpirun's place: all that a job shows to a supervisor, heartbeats and what signals do. It notes the signals that come to it
# and to a child of its group, and obeys SIGTERM if told so.
JOB = """#!/usr/bin/python3
import os, pathlib, signal, struct, sys, time
run, obeys = pathlib.Path("RUN"), OBEYS
child = os.fork() == 0
def came(number, frame):
    with open("MARKS", "a") as marks:
        marks.write(f"{'child' if child else 'job'} {signal.Signals(number).name} {time.monotonic()}\\n")
    if obeys and number == signal.SIGTERM:
        os._exit(143)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, came)
if not child:
    (run / "heartbeat").mkdir(exist_ok=True)
    for rank in range(2):
        beat = struct.pack("<8sIiQii", b"PcnBeat1", 1, rank, os.getpid(), 2, 0)
        beat = (beat + b"localhost").ljust(96, b"\\0")
        beat += struct.pack("<Iiqq", 2, -1, 1, 0)
        (run / f"heartbeat/rank-{rank:05}").write_bytes(beat.ljust(184, b"\\0"))
end = time.monotonic() + 300  # whatever happens to the test
while time.monotonic() < end:
    time.sleep(0.05)
"""
# Daemons and ranks of different "hosts" meet on the loopback.
NETWORK = {"OMPI_MCA_btl": "self,vader,tcp", "OMPI_MCA_btl_tcp_if_include": "lo", "OMPI_MCA_oob_tcp_if_include": "lo"}
WHOLE = ["checkpoint.pec.experts_per_checkpoint=8", "parallel.expert_model_parallel_size=2"]
QUICK = ["elastic.restart_backoff_s=0.1", "elastic.probe_timeout_s=20"]
ENDLESS = "training.train_iters=1000000"


def heartbeats(run_dir):
    """By rank, as docs/formats/heartbeat.md says."""
    found = {}
    for path in sorted((run_dir / "heartbeat").glob("rank-*")):
        data = path.read_bytes()
        if len(data) < 184 or data[:8] != b"PcnBeat1":
            continue
        version, rank, pid, world, incarnation = struct.unpack_from("<IiQii", data, 8)
        phase, layer, step, changed = struct.unpack_from("<Iiqq", data, 96)
        text = lambda at, size: data[at:at + size].split(b"\0")[0].decode()
        found[rank] = dict(version=version, pid=pid, world=world, incarnation=incarnation, phase=phase, layer=layer, step=step,
                           changed=changed, host=text(32, 64), operation=text(120, 24), purpose=text(144, 32),
                           sequence=struct.unpack_from("<Q", data, 176)[0])
    return found


def parent_of(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])


def events(run_dir, *kinds):
    records = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [r for r in records if not kinds or r["event"] in kinds]


class Launch:
    """One pecan-launch with its run directory."""

    def __init__(self, table, name, hosts, settings, agent=True):
        self.table, self.run_dir = table, table.lab.folder / name
        self.hosts = table.lab.folder / f"{name}.hosts"
        self.hosts.write_text("".join(f"{host} slots={slots}\n" for host, slots in hosts))
        self.settings, self.agent = settings, table.agent if agent else None
        self.environment = table.environment
        self.log = table.lab.folder / f"{name}.log"
        self.process, self.environment = None, table.environment
        self.mpi_options = ["--bind-to", "none"]  # all hosts have the same cores

    def command(self, *settings, hosts=None):
        words = [str(self.table.lab.bin / "pecan-launch"), "--config", str(self.table.lab.config), "--hosts",
                 str(hosts or self.hosts), "--run-dir", str(self.run_dir), "--log", str(self.log)]
        if self.agent:
            words += ["--agent", str(self.agent)]
        for setting in (*self.settings, *settings):
            words += ["--set", setting]
        return [*words, "--", *self.mpi_options]

    def start(self, *settings):
        self.process = subprocess.Popen(self.command(*settings), env=self.environment, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)

    def finish(self, expect, what):
        try:
            code = self.process.wait(timeout=TIME_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = "none: it hangs"
        check(code == expect, f"{what}: exit code {code} (expected {expect})")
        if code != expect:
            print(self.log.read_text()[-6000:], flush=True)

    def until(self, condition, what):
        end = time.monotonic() + TIME_LIMIT_S
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if condition():
                    return
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.02)
        check(False, f"{what} (exit code {self.process.poll()})")
        print(self.log.read_text()[-6000:], flush=True)

    def trained(self, incarnation, count):
        """The start has trained so many steps."""
        return sum(r["incarnation"] == incarnation for r in e2e.steps(self.run_dir)) >= count

    def said(self, text):
        return text in self.log.read_text()


class Table:
    def __init__(self, lab):
        self.lab = lab
        self.lost = lab.folder / "lost"
        self.lost.mkdir()
        self.agent = lab.folder / "agent"
        self.agent.write_text(AGENT.replace("LOST", str(self.lost)))
        self.agent.chmod(0o755)
        path = f"{pathlib.Path(lab.mpiexec).resolve().parent}:{os.environ['PATH']}" if "/" in lab.mpiexec else os.environ["PATH"]
        # What killed ranks leave of Open MPI's own shared memory goes with the folder.
        self.environment = {**os.environ, **e2e.ENVIRONMENT, **NETWORK, "PATH": path,
                            "OMPI_MCA_btl_vader_backing_directory": str(lab.folder)}
        # The supervisor sets these itself.
        for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe",
                     "OMPI_MCA_mpi_yield_when_idle"):
            self.environment.pop(name, None)

    def processes(self):
        """Whatever still names the test's folder."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue
            if str(self.lab.folder).encode() in words and int(entry.name) != os.getpid():
                found.append((int(entry.name), words.replace(b"\0", b" ").decode()[:100]))
        return found


def killed_rank(t):
    """A rank dies: the run goes on as if it had not, on the same hosts."""
    straight = t.lab.folder / "straight"
    t.lab.train(2, straight, *[w for s in WHOLE for w in ("--set", s)], "--set", "training.train_iters=12")
    run = Launch(t, "killed", [("na", 1), ("nb", 1), ("nc", 1)],
                 [*WHOLE, *QUICK, "training.train_iters=12", 'fault.inject=["kill step=8 rank=1"]', "checkpoint.async_save=false",
                  "elastic.layouts=[{world_size: 2}]"])
    run.start()
    run.finish(0, "a killed rank")
    newest = {r["step"]: r["loss"] for r in e2e.steps(run.run_dir)}
    check(newest == {r["step"]: r["loss"] for r in e2e.steps(straight)}, "every step's loss is that of a run without failure")
    starts = events(run.run_dir, "start")
    check([(s["start"], s["expected_incarnation"], s["world"]) for s in starts] == [(0, 0, 2), (1, 1, 2)], "two starts")
    check(all([h["host"] for h in s["hosts"]] == ["na", "nb"] and s["spares"] == ["nc"] for s in starts), "on the first hosts")
    failure, = events(run.run_dir, "failure")
    check((failure["exit_code"], failure["kind"], failure["ranks"], failure["hosts"], failure["last_step"])
          == (137, "signal", [1], ["nb"], 7), f"the failure is told: {failure}")
    recovery, = e2e.records(run.run_dir, "recovery")
    resumed, = events(run.run_dir, "resumed")
    check(recovery["step"] == 6 and resumed["from_step"] == 6 and resumed["lost_steps"] == 1
          and resumed["downtime_s"] > 0 and resumed["incarnation"] == 1, f"and what it cost: {resumed}")
    done, = events(run.run_dir, "done")
    check(done["step"] == 12 and done["starts"] == 2, f"and the end: {done}")
    beats = heartbeats(run.run_dir)
    check(sorted(beats) == [0, 1] and all(b["phase"] == 4 and b["incarnation"] == 1 and b["world"] == 2 and b["step"] == 12
                                          for b in beats.values()), f"heartbeats stand at the end: {beats}")
    check(run.said("training goes on from step") and run.said("12/12"),
          "the log holds what the job and the supervisor say")


def on_request(t):
    """SIGTERM stops at a step with a checkpoint; a later start goes on; one supervisor a run."""
    run = Launch(t, "request", [("localhost", 2)], [*WHOLE, *QUICK], agent=False)
    run.start(ENDLESS)
    run.until(lambda: run.trained(0, 3), "it trains")
    beats = heartbeats(run.run_dir)
    check(all(b["phase"] == 2 and b["operation"] and b["step"] > 0 for b in beats.values()) and len(beats) == 2,
          f"heartbeats tell the collective: {beats}")
    second = t.lab.run(run.command(ENDLESS), expect=4)
    check("supervises the run" in second.stdout and str(run.process.pid) in second.stdout, "a second supervisor is refused")
    run.process.send_signal(signal.SIGTERM)
    run.finish(75, "SIGTERM")
    last = e2e.steps(run.run_dir)[-1]["step"]
    check(t.lab.inspect(run.run_dir, "verify").returncode == 0, "a whole checkpoint is left")
    check(events(run.run_dir)[-1]["event"] == "stopped" and events(run.run_dir)[-1]["requested"], "the stop is told")
    run.start(f"training.train_iters={last + 3}")
    run.finish(0, "the next start")
    check([r["step"] for r in e2e.steps(run.run_dir) if r["incarnation"] == 1] == [last + 1, last + 2, last + 3],
          "it goes on behind the last step")
    run.start(f"training.train_iters={last + 9}", "training.exit_interval=1")
    run.finish(75, "a stop by the configuration")
    check(not events(run.run_dir)[-1]["requested"], "which nobody else has asked for")


def unheard_requests(t):
    """A job that does not stop when asked is ended when the time is up, and killed if that is not enough; a second signal ends it
    at once; and a request in a pause between starts is heard too."""
    def played(name, obeys, *settings):
        """Runs with the job above, in whose place the table's mpirun stands elsewhere."""
        run = Launch(t, name, [("localhost", 2)], [*WHOLE, *QUICK, *settings], agent=False)
        run.marks = t.lab.folder / f"{name}.marks"
        folder = t.lab.folder / f"{name}.bin"
        folder.mkdir()
        text = JOB.replace("RUN", str(run.run_dir)).replace("OBEYS", str(obeys)).replace("MARKS", str(run.marks))
        (folder / "mpirun").write_text(text)
        (folder / "mpirun").chmod(0o755)
        run.environment = {**t.environment, "PATH": f"{folder}:{t.environment['PATH']}"}
        run.start()
        run.until(lambda: len(heartbeats(run.run_dir)) == 2, f"{name}: the job has begun")
        return run

    def marks(run):
        lines = run.marks.read_text().splitlines() if run.marks.exists() else []
        return [(who, name, float(when)) for who, name, when in (line.split() for line in lines)]

    def told(run, name):
        run.until(lambda: ("job", name) in [m[:2] for m in marks(run)], f"{name} reaches the job")

    deaf = played("deaf", False, "comm.timeout_s=1")
    asked = time.monotonic()
    deaf.process.send_signal(signal.SIGTERM)
    deaf.finish(75, "a job that hears nothing")
    seen = marks(deaf)
    check([m[:2] for m in seen] == [("job", "SIGUSR1"), ("job", "SIGTERM")], f"it was asked, then told, once each: {seen}")
    check(len(seen) == 2 and seen[1][2] - asked >= 1, "told when comm.timeout_s was up, not before")
    check(deaf.said("the job did not stop in 1 s (comm.timeout_s)"), "and that is said")
    kinds = [(e["event"], e.get("kind"), e.get("exit_code")) for e in events(deaf.run_dir, "failure", "stopped", "restart")]
    check(kinds == [("failure", "signal", 137), ("stopped", None, 137)],
          f"in the end it was killed, and not started again: {kinds}")

    forced = played("forced", True, "comm.timeout_s=3600")
    forced.process.send_signal(signal.SIGINT)
    told(forced, "SIGUSR1")
    check(("job", "SIGTERM") not in [m[:2] for m in marks(forced)], "after the first signal the job has time")
    forced.process.send_signal(signal.SIGTERM)
    forced.finish(75, "a second signal")
    check([m[:2] for m in marks(forced)] == [("job", "SIGUSR1"), ("job", "SIGTERM")], f"ends the job at once: {marks(forced)}")
    check(events(forced.run_dir)[-1]["event"] == "stopped" and events(forced.run_dir)[-1]["requested"], "as a stop on request")
    check(len(events(forced.run_dir, "start")) == 1, "which is no failure to restart after")

    waiting = Launch(t, "waiting", [("localhost", 2)],
                     [*WHOLE, "elastic.restart_backoff_s=3600", "elastic.restart_backoff_max_s=3600",
                      'fault.inject=["kill step=1 start=every"]'], agent=False)
    waiting.start()
    waiting.until(lambda: waiting.said("restarting in 3600 s"), "it waits before the second restart")
    waiting.process.send_signal(signal.SIGTERM)
    waiting.finish(75, "a request in a pause")
    check(len(events(waiting.run_dir, "start")) == 2 and events(waiting.run_dir)[-1].get("requested"), "ends it")


def diverged(t):
    """What would diverge again is not started again; what may have come from the hardware is, once."""
    nan = Launch(t, "nan", [("localhost", 2)], [*WHOLE, *QUICK, "training.train_iters=8", "checkpoint.async_save=false"], agent=False)
    nan.start('fault.inject=["nan step=5 rank=1 start=every"]')
    nan.finish(6, "a gradient that is not finite")
    last = events(nan.run_dir)[-1]
    check(len(events(nan.run_dir, "start")) == 1 and last["event"] == "give_up" and last["diverged_step"] == 5,
          f"the same data are not fed to the same state again: {last}")
    check(nan.said("diverged at step 5, and would again") and nan.said("training.rollback_after_skips"), "and what to do is said")
    nan.start("training.check_for_nan_in_loss_and_grad=skip", "training.rollback_after_skips=1", 'fault.inject=["nan step=5 start=1"]')
    nan.finish(0, "with that the same run goes on")
    passed, = e2e.records(nan.run_dir, "rollback")
    check(passed["to"] == 4 and e2e.steps(nan.run_dir)[-1]["step"] == 8, f"and passes over the data: {passed}")

    flip = Launch(t, "flip", [("localhost", 2)],
                  [WHOLE[0], *QUICK, "training.train_iters=8", "checkpoint.async_save=false", "parallel.expert_model_parallel_size=1",
                   "training.check_weight_hash_across_dp_replicas_interval=2", 'fault.inject=["flip step=5 rank=1 start=every"]'], agent=False)
    flip.start()
    flip.finish(6, "replicas that differ in every start")
    failures = events(flip.run_dir, "failure")
    check([(f["kind"], f["hosts"]) for f in failures] == [("diverged", [])] * 2, f"are restarted once, with nobody to blame: {failures}")
    check(events(flip.run_dir)[-1]["reason"] == "diverged twice" and flip.said("leave out a host"), "and then given up")


def stopped_rank(t):
    """A rank that stands still is found by its heartbeat, and named; the supervisor is killed, and another takes over."""
    run = Launch(t, "wedged", [("localhost", 2)], [*WHOLE, *QUICK, "elastic.heartbeat_timeout_s=6"], agent=False)
    run.start(ENDLESS)
    run.until(lambda: run.trained(0, 3), "it trains")
    victim = heartbeats(run.run_dir)[1]["pid"]
    os.kill(victim, signal.SIGSTOP)
    run.until(lambda: run.trained(1, 3), "it trains again after the stop")
    failure, = events(run.run_dir, "failure")
    check((failure["kind"], failure["exit_code"], failure["ranks"], failure["hosts"]) == ("hung", 5, [1], ["localhost"])
          and failure["detection_s"] >= 6, f"the standstill is told: {failure}")
    check(run.said("rank 1") and run.said("no rank has made progress for 6 s"), "with words")

    ranks = [b["pid"] for b in heartbeats(run.run_dir).values()]
    job = parent_of(ranks[0])
    run.process.kill()
    run.process.wait()
    newest = e2e.steps(run.run_dir)[-1]["step"]
    run.start(f"training.train_iters={newest + 200}")
    run.finish(0, "a supervisor after one that was killed")
    check(not any(pathlib.Path(f"/proc/{p}").exists() for p in (job, *ranks)), "nothing of the former one is left")
    check(run.said("taking over"), "it says so")
    takeover, = events(run.run_dir, "takeover")
    newest = max(r["step"] for r in e2e.steps(run.run_dir) if r["incarnation"] == 1)  # it went on for a moment
    resumed = events(run.run_dir, "resumed")[-1]
    check(takeover["last_step"] == newest and resumed["lost_steps"] == newest - resumed["from_step"], f"and what it cost: {resumed}")


def gives_up(t):
    """Restarts without a checkpoint are counted; bad data leads to none."""
    run = Launch(t, "hopeless", [("localhost", 2)],
                 [*WHOLE, *QUICK, "training.train_iters=4", "elastic.max_restarts=1",
                  'fault.inject=["kill step=1 rank=0", "kill step=1 rank=1 start=1"]'], agent=False)
    run.start()
    run.finish(137, "a run that never gets to a checkpoint")
    last = events(run.run_dir)[-1]
    check(len(events(run.run_dir, "start")) == 2 and last["event"] == "give_up" and last["exit_code"] == 137
          and last["restarts_in_row"] == 1, f"it gives up after one restart: {last}")
    check(run.said("giving up after 1 restart "), "and says so")
    data = Launch(t, "nodata", [("localhost", 2)], [*WHOLE, *QUICK, "data.data_path=/nowhere/x"], agent=False)
    data.start()
    data.finish(3, "data that is not there")
    check(len(events(data.run_dir, "start")) == 1 and events(data.run_dir)[-1]["event"] == "give_up", "no restart")


def lost_host(t):
    """A host is lost: the layout shrinks; it comes back: the layout grows at the next start."""
    run = Launch(t, "shrink", [("na", 1), ("nb", 1)],
                 [WHOLE[0], *QUICK, "elastic.layouts=[{world_size: 1}, {world_size: 2, expert_model_parallel_size: 2}]"])
    run.start(ENDLESS)
    run.until(lambda: run.trained(0, 5), "it trains on two hosts")
    rank = heartbeats(run.run_dir)[1]["pid"]
    (t.lost / "nb").touch()
    for pid in (parent_of(rank), rank):  # the daemon of the host and its rank
        os.kill(pid, signal.SIGKILL)
    run.until(lambda: run.trained(1, 3), "it trains on one host")
    check(sorted(heartbeats(run.run_dir)) == [0], "heartbeats of ranks that are no more are gone")
    (t.lost / "nb").unlink()
    os.kill(heartbeats(run.run_dir)[0]["pid"], signal.SIGKILL)
    run.until(lambda: run.trained(2, 3), "it trains on two hosts again")
    run.process.send_signal(signal.SIGUSR1)
    run.finish(75, "SIGUSR1")
    starts = events(run.run_dir, "start")
    check([(s["world"], s["layout"]["ep"]) for s in starts] == [(2, 2), (1, 1), (2, 2)], "worlds of two, one and two ranks")
    check([(e["event"], e["host"]) for e in events(run.run_dir, "host_lost", "host_back")]
          == [("host_lost", "nb"), ("host_back", "nb")], "the host's coming and going is told")
    failures = events(run.run_dir, "failure")
    check(len(failures) == 2, f"two failures: {failures}")
    first, second = failures[0], failures[-1]
    check(first["kind"] in ("host_lost", "signal") and first["hosts"] == ["nb"] and second["hosts"] == ["na"],
          f"the failures name the hosts: {first}, {second}")
    check(events(run.run_dir, "host_lost")[0]["reason"] == "nb: no route to host", "with what the agent said last")


def set_aside(t):
    """A host that fails twice in a row has one more chance while it alone holds snapshots; then the run goes on without it, from
    storage."""
    try:
        with hosts.Hosts(t.lab.folder / "virtual", count=3) as virtual:
            run = Launch(t, "aside", [(name, 1) for name in virtual.names],
                         [*WHOLE, *QUICK, "training.train_iters=44", "checkpoint.save_interval=20",
                          "checkpoint.non_persistent_save_interval=1", "elastic.layouts=[{world_size: 2}]"])
            run.agent, run.environment = virtual.agent, {**t.environment, **virtual.environment()}
            run.mpi_options += virtual.mpi_options()
            run.start('fault.inject=["kill step=40 node=h2 start=every"]')
            run.finish(0, "a host that fails in every start")
    except hosts.CannotMakeHosts as problem:
        print(f"skipped: no virtual hosts here ({problem})", flush=True)
        t.lab.skipped = True
        return
    starts = [[h["host"] for h in s["hosts"]] for s in events(run.run_dir, "start")]
    # A fourth start with it, and another snapshot that was whole when the rank died, are a matter of moments.
    check(len(starts) >= 4 and starts == [["h1", "h2"]] * (len(starts) - 1) + [["h1", "h3"]], f"starts with it, and one without: {starts}")
    turns = [(e["event"], e["host"]) for e in events(run.run_dir, "host_set_aside", "host_taken_back")]
    check(turns[:3] == [("host_set_aside", "h2"), ("host_taken_back", "h2"), ("host_set_aside", "h2")], f"which is told: {turns}")
    steps = [r["step"] for r in e2e.records(run.run_dir, "recovery")]
    check(len(steps) == len(starts) - 1 and min(steps[:-1]) > 20 >= steps[-1], f"from memory as long as it is there, then from storage: {steps}")


def over_ssh(t):
    """Without an agent it is ssh that reaches hosts: it starts the ranks, a lost host is one that it does not reach, and it ends
    what a killed supervisor has left."""
    absent = ssh_server.missing()
    if absent:
        print(f"skipped: {absent} is missing (Debian: openssh-server, openssh-client)", flush=True)
        t.lab.skipped = True
        return
    with ssh_server.SshServer(t.lab.folder, ["na", "nb"]) as server:
        run = Launch(t, "ssh", [("na", 1), ("nb", 1)],
                     [WHOLE[0], *QUICK, "elastic.layouts=[{world_size: 1}, {world_size: 2, expert_model_parallel_size: 2}]"],
                     agent=False)
        run.environment = {**t.environment, "PATH": f"{server.path}:{t.environment['PATH']}"}
        run.start(ENDLESS)
        run.until(lambda: run.trained(0, 3), "it trains on two hosts")
        ranks = [b["pid"] for b in heartbeats(run.run_dir).values()]
        check(all(b"SSH_CONNECTION=" in pathlib.Path(f"/proc/{p}/environ").read_bytes() for p in ranks), "the ranks are children of sshd")
        run.process.kill()
        run.process.wait()
        # The same by an agent with arguments.
        run.environment = t.environment
        run.agent = f"ssh -F {server.config}"
        run.start(ENDLESS)
        run.until(lambda: run.trained(1, 3), "another supervisor takes over")
        check(not any(pathlib.Path(f"/proc/{p}").exists() for p in ranks), "nothing of the former one is left")
        server.answer("na")
        rank = heartbeats(run.run_dir)[1]["pid"]
        for pid in (parent_of(rank), rank):
            os.kill(pid, signal.SIGKILL)
        run.until(lambda: run.trained(2, 3), "it trains on the host that is left")
        run.process.send_signal(signal.SIGTERM)
        run.finish(75, "SIGTERM")
        starts = events(run.run_dir, "start")
        check([s["world"] for s in starts] == [2, 2, 1], f"worlds of two ranks and one: {starts}")
        lost = events(run.run_dir, "host_lost")
        check([h["host"] for h in lost] == ["nb"] and lost[0]["reason"].endswith("refused"), f"with what ssh said: {lost}")


def bad_input(t):
    """What is refused before anything starts."""
    def refused(name, texts, hosts="localhost slots=2\n", words=(), settings=WHOLE, code=2):
        path = t.lab.folder / "bad.hosts"
        if hosts is not None:
            path.write_text(hosts)
        command = [str(t.lab.bin / "pecan-launch"), "--config", str(t.lab.config), "--hosts", str(path),
                   "--run-dir", str(t.lab.folder / "bad-run")]
        command += [w for s in settings for w in ("--set", s)] + list(words)
        done = subprocess.run(command, env=t.environment, text=True, timeout=TIME_LIMIT_S, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        missing = [text for text in texts if text not in done.stdout]
        said = sum(line.startswith("pecan-launch: ") for line in done.stdout.splitlines())
        check(done.returncode == code and not missing and said >= 1, f"{name}: exit code {done.returncode}, without {missing}")
        if done.returncode != code or missing:
            print(done.stdout[-2000:], flush=True)
        check(not (t.lab.folder / "bad-run/heartbeat").exists(), f"{name}: nothing was started")

    refused("a duplicate host", ["bad.hosts:3", "host na", "line 1", "; "], "na\nnb\nna slots=2\n")
    refused("no host", ["bad.hosts", "no host", "; "], "# none\n")
    refused("no slots", ["slots=0", "; "], "na slots=0\n")
    refused("too few slots", ["1 slots", "hold no layout", "; "], "localhost slots=1\n")
    (t.lost / "na").touch()
    refused("hosts that do not answer", ["host na does not answer", "no route to host", "0 slots", "2 slots are needed"],
            "na slots=2\n", ["--agent", str(t.agent), "--set", "elastic.layouts=[{world_size: 2}]"])
    (t.lost / "na").unlink()
    refused("a line that is none", ["bad.hosts:2", "'nowhere:'", "; "], "localhost slots=2\nnowhere: x\n")
    refused("an agent that is not there", ["/nowhere/agent", "; "], words=["--agent", "/nowhere/agent"])
    refused("a program that is not there", ["/nowhere/train", "; "], words=["--train", "/nowhere/train"])
    refused("mpirun's number of processes", ["-np", "elastic.layouts", "; "], words=["--", "-np", "4"])
    refused("an unknown key", ["unknown key elastic.max_restart", "elastic.max_restarts"], settings=["elastic.max_restart=2"])
    # A signal that comes before the run can be stopped waits until then; here there is no run to stop, as a pipe has no content.
    pipe = t.lab.folder / "pipe.hosts"
    os.mkfifo(pipe)
    early = subprocess.Popen([str(t.lab.bin / "pecan-launch"), "--config", str(t.lab.config), "--hosts", str(pipe)], env=t.environment,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with open(pipe, "w"):  # opens when it is being read
        early.send_signal(signal.SIGUSR1)
    said = early.communicate(timeout=TIME_LIMIT_S)[1]
    check(early.returncode == 2 and "names no host" in said, f"an early signal does not kill: exit code {early.returncode}, {said}")
    done = t.lab.run([t.lab.bin / "pecan-launch", "--config", t.lab.config], expect=2)
    check("needs --hosts FILE" in done.stdout and "--help" in done.stdout, "without --hosts: it is asked for")
    done = t.lab.run([t.lab.bin / "pecan-launch", "--config", t.lab.config, "--hosts", "/nowhere/hosts"], expect=2)
    check("/nowhere/hosts" in done.stdout, "a hosts file that is not there is named")


CASES = (killed_rank, on_request, unheard_requests, diverged, stopped_rank, gives_up, lost_host, set_aside, over_ssh, bad_input)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--mpiexec", default="mpirun")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    lab = e2e.Lab(arguments)
    table = Table(lab)
    try:
        for case in CASES:
            if arguments.only in case.__name__:
                begin = time.monotonic()
                case(table)
                left = table.processes()
                check(not left, f"{case.__name__}: no process is left{left or ''} ({time.monotonic() - begin:.1f} s)")
    finally:
        for pid, _ in table.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        lab.close()
    print(f"{len(e2e.failures)} failures")
    return 1 if e2e.failures else 77 if lab.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
