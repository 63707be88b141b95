#!/usr/bin/python3
"""configs/cluster/slurm.sbatch in a real Slurm: failures inside of the allocation, the time limit, preemption, other people's requeues.

usage: slurm.py --bin DIR --mpiexec PATH [--keep]

The Slurm is the test's own: munged, slurmctld and a slurmd for each node, all on this machine, in a temporary folder and on ports of
their own. Exit code 77 where it is not installed (Debian: slurm-wlm, munge, openssh-server), or this is not root.
"""
import argparse
import ctypes
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import e2e  # noqa: E402
import launch  # noqa: E402
import ssh_server  # noqa: E402
from e2e import check  # noqa: E402

TIME_LIMIT_S = 120  # a hang, on however slow a machine
PROGRAMS = ("/usr/sbin/munged", "/usr/sbin/slurmctld", "/usr/sbin/slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
CLUSTER = pathlib.Path(__file__).resolve().parents[2] / "configs/cluster"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
libc = ctypes.CDLL(None, use_errno=True)
CONF = """
ClusterName=pecantest
SlurmctldHost=HOSTNAME(127.0.0.1)
SlurmctldPort=CONTROLPORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits as long as a credential lasts.
AuthInfo=socket=FOLDER/munge.socket,cred_expire=5
StateSaveLocation=FOLDER/state
SlurmdSpoolDir=FOLDER/spool.%n
SlurmctldPidFile=FOLDER/slurmctld.pid
SlurmdPidFile=FOLDER/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
JobRequeue=1
ReturnToService=2
KillWait=5
"""


class CannotRunSlurm(Exception):
    """Slurm is not installed, or this user may not start it; the message says what."""


class SlurmFailed(Exception):
    """One of its daemons does not do what it should."""


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except OSError:
        return False


def descendants():
    """Processes that come from this one, however they were detached: it has made itself the parent of orphans."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)):
            try:
                parents[int(entry.name)] = launch.parent_of(int(entry.name))
            except OSError:
                continue
    found, new = set(), {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return found


class Slurm:
    """Nodes n1, n2, ... of `cpus` processors each; `partitions` are their lines of slurm.conf. A context manager."""

    def __init__(self, folder, nodes, partitions, cpus=2):
        self.folder, self.nodes = pathlib.Path(folder) / "slurm", [f"n{i + 1}" for i in range(nodes)]
        self.partitions, self.cpus = partitions, cpus
        self.daemons = []
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self):
        absent = next((p for p in PROGRAMS if shutil.which(p) is None), None) or ssh_server.missing()
        if absent:
            raise CannotRunSlurm(f"{absent} is missing (Debian: slurm-wlm, munge, openssh-server)")
        if os.geteuid() != 0:
            raise CannotRunSlurm("slurmd needs root")
        for part in ("", "state", *(f"spool.{n}" for n in self.nodes)):
            (self.folder / part).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        ports = [ssh_server.free_port() for _ in range(1 + len(self.nodes))]
        text = CONF.replace("FOLDER", str(self.folder)).replace("HOSTNAME", socket.gethostname().split(".")[0])
        text = text.replace("CONTROLPORT", str(ports[0]))
        for node, port in zip(self.nodes, ports[1:]):
            text += f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} State=UNKNOWN\n"
        (self.folder / "slurm.conf").write_text(text + "".join(f"PartitionName={p}\n" for p in self.partitions))
        try:
            self.start("munged", "/usr/sbin/munged", "--foreground", "--force", "--origin=127.0.0.1", f"--key-file={key}",
                       f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munged.pid",
                       f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munge.seed")
            self.until(lambda: (self.folder / "munge.socket").exists(), "munged makes its socket")
            self.start("slurmctld", "/usr/sbin/slurmctld", "-D", "-c")
            for node in self.nodes:
                self.start(f"slurmd.{node}", "/usr/sbin/slurmd", "-D", "-N", node)
            self.until(lambda: set(self.call("sinfo", "-h", "-N", "-o", "%T", expect=None).split()) == {"idle"}, "all nodes are idle")
        except SlurmFailed:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *unused):
        # Jobs end before the daemons that end them.
        end = time.monotonic() + 15
        while time.monotonic() < end and all(daemon.poll() is None for _, daemon in self.daemons) and self.jobs():
            self.call("scancel", *self.jobs(), expect=None)
            time.sleep(0.1)
        for _, daemon in reversed(self.daemons):
            if daemon.poll() is None:
                daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def start(self, name, *command):
        def tie():
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with open(self.folder / f"{name}.out", "w") as log:
            daemon = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=tie,
                                      start_new_session=True)
        self.daemons.append((name, daemon))

    def until(self, condition, what):
        end = time.monotonic() + 30
        while not condition():
            ended = [name for name, daemon in self.daemons if daemon.poll() is not None]
            if ended or time.monotonic() > end:
                name = ended[0] if ended else self.daemons[-1][0]
                words = (self.folder / f"{name}.out").read_text().strip().splitlines()[-3:]
                raise SlurmFailed(f"{what}: in vain; {name} says: {' | '.join(words)}")
            time.sleep(0.05)

    def call(self, *command, expect=0, environment=None):
        done = subprocess.run([str(c) for c in command], env=environment or self.environment, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        if expect is not None and done.returncode != expect:
            check(False, f"{' '.join(str(c) for c in command)}: exit code {done.returncode}: {done.stdout.strip()}")
        return done.stdout

    def jobs(self):
        """Numbers of all jobs that have not ended."""
        return self.call("squeue", "-h", "-o", "%i").split() if len(self.daemons) > 1 else []

    def job(self, number):
        """What scontrol says about a job."""
        words = self.call("scontrol", "-o", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


class Job(launch.Launch):
    """A run by configs/cluster/slurm.sbatch."""

    def __init__(self, table, slurm, name, sbatch, settings, path=(), options=()):
        super().__init__(table, name, [], settings)
        self.slurm, self.sbatch, self.options = slurm, sbatch, options
        self.path = ":".join(str(p) for p in (*path, table.lab.bin, table.environment["PATH"]))
        self.config = table.lab.folder / f"{name}.yaml"
        self.number = None

    def configure(self, train_iters):
        """Whatever starts from now on trains so far."""
        text = self.table.lab.config.read_text().replace("train_iters: 40", f"train_iters: {train_iters}")
        draft = self.config.with_suffix(".new")
        draft.write_text(text)
        draft.rename(self.config)

    def submit(self):
        words = ["sbatch", "--parsable", f"--output={self.log}", *self.sbatch, CLUSTER / "slurm.sbatch", self.config, self.run_dir,
                 *self.options]
        for setting in self.settings:
            words += ["--set", setting]
        # All nodes have the same cores, and daemons of one machine meet on the loopback.
        words += ["--", "--bind-to", "none"]
        answer = self.slurm.call(*words, environment={**self.table.environment, "PATH": self.path,
                                                      "SLURM_CONF": self.slurm.environment["SLURM_CONF"]})
        self.number = int(answer) if answer.strip().isdigit() else 0
        check(self.number > 0, f"sbatch takes the job: {answer.strip()}")

    def state(self):
        return self.slurm.job(self.number).get("JobState")

    def until(self, condition, what):
        end = time.monotonic() + TIME_LIMIT_S
        while time.monotonic() < end:
            try:
                if condition():
                    return True
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.05)
        check(False, f"{what}: in vain; {self.slurm.job(self.number)}")
        print(self.log.read_text()[-6000:] if self.log.exists() else "no output", flush=True)
        return False

    def last_step(self):
        return e2e.steps(self.run_dir)[-1]["step"]

    def goes_on(self, incarnation, behind, what):
        """The start has trained the steps behind `behind`, each once, and those alone."""
        trained = [r["step"] for r in e2e.steps(self.run_dir) if r["incarnation"] == incarnation]
        check(trained and trained == list(range(behind + 1, behind + 1 + len(trained))),
              f"{what} goes on behind step {behind}: {trained[:5]}")

    def check_stop(self, what):
        """The job has stopped as planned and waits for its next start; returns the last step."""
        stop = launch.events(self.run_dir)[-1]
        check((stop["event"], stop.get("exit_code"), stop.get("requested")) == ("stopped", 75, True), f"{what}: a planned end: {stop}")
        check(self.table.lab.inspect(self.run_dir, "verify").returncode == 0, f"{what}: a whole checkpoint is left")
        return self.last_step()

    def is_done(self, restarts):
        self.until(lambda: self.state() in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"), "the job ends")
        facts = self.slurm.job(self.number)
        check((facts.get("JobState"), facts.get("ExitCode"), facts.get("Restarts")) == ("COMPLETED", "0:0", str(restarts)),
              f"the job is done after {restarts} requeues: {facts.get('JobState')}, {facts.get('ExitCode')}, {facts.get('Restarts')}")
        check(launch.events(self.run_dir)[-1]["event"] == "done", "and so is the run")


def whole(table):
    """Everything in one Slurm: while the first job waits for its time limit the second one is killed, requeued and preempted."""
    common = [*launch.WHOLE, *launch.QUICK, "checkpoint.async_save=false"]
    partitions = ["low Nodes=n[1-3] Default=YES PriorityTier=1 GraceTime=300 State=UP", "urgent Nodes=n[1-2] PriorityTier=2 State=UP"]
    with ssh_server.SshServer(table.lab.folder, ["n1", "n2"]) as server, Slurm(table.lab.folder, 3, partitions) as slurm:
        by_steps = ["--agent", CLUSTER / "slurm-agent"]
        # One node, reached by steps of the job. The script's own signal comes 300 s before the end: at the next look of Slurm's.
        limited = Job(table, slurm, "limited", ["--nodes=1", "--nodelist=n3", "--time=5"], common, options=by_steps)
        limited.configure(1000000)
        limited.submit()
        # Two nodes, reached by ssh.
        hurt = Job(table, slurm, "hurt", ["--nodes=2", "--exclude=n3", "--ntasks-per-node=1"],
                   [*common, 'fault.inject=["kill step=8 rank=1"]'], path=[server.path])
        hurt.configure(1000000)
        hurt.submit()
        limited.until(lambda: limited.state() == "RUNNING", "it starts on one node")
        # A requeued job shall find no node until the test has looked.
        slurm.call("scontrol", "update", "nodename=n3", "state=drain", "reason=test")

        hurt.until(lambda: hurt.trained(1, 3), "it trains on two nodes, and again after a killed rank")
        start, again = launch.events(hurt.run_dir, "start")
        check(all([(h["host"], h["ranks"]) for h in s["hosts"]] == [("n1", 1), ("n2", 1)] for s in (start, again)),
              "on the nodes of the job")
        failure, = launch.events(hurt.run_dir, "failure")
        check((failure["kind"], failure["ranks"], failure["hosts"]) == ("signal", [1], ["n2"]), f"the failure is told: {failure}")
        check(slurm.job(hurt.number)["Restarts"] == "0", "inside of the allocation")

        ranks = [b["pid"] for b in launch.heartbeats(hurt.run_dir).values()]
        check(all(b"SSH_CONNECTION=" in pathlib.Path(f"/proc/{p}/environ").read_bytes() for p in ranks), "its ranks are children of sshd")
        slurm.call("scontrol", "requeue", hurt.number)
        # What scancel ends is not put into the queue again.
        cancelled = Job(table, slurm, "cancelled", ["--nodes=1", "--nodelist=n1"], common, options=by_steps)
        cancelled.configure(1000000)
        cancelled.submit()
        cancelled.until(lambda: cancelled.trained(0, 3), "it trains until it is cancelled")
        slurm.call("scancel", cancelled.number)
        cancelled.until(lambda: str(cancelled.number) not in slurm.jobs(), "it leaves the queue")
        check(cancelled.state() == "CANCELLED", "a cancelled job stays out of the queue")

        hurt.until(lambda: hurt.trained(2, 3), "it trains again after somebody else's requeue")
        check(not any(is_alive(p) for p in ranks), "nothing of the former start is left")
        recovery = e2e.records(hurt.run_dir, "recovery")[-1]
        hurt.goes_on(2, recovery["step"], "the requeued job")

        release = table.lab.folder / "release"
        urgent = slurm.call("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null",
                            f"--wrap=while [ ! -e {release} ]; do sleep 0.05; done").strip()
        hurt.until(lambda: slurm.job(urgent)["JobState"] == "RUNNING", "the preempting job runs")
        check(hurt.state() == "PENDING", "the preempted job is in the queue")
        last = hurt.check_stop("preemption")
        hurt.configure(last + 4)
        release.touch()

        limited.until(lambda: limited.state() == "PENDING", "the time limit stops it")
        limit = limited.check_stop("the time limit")
        limited.configure(limit + 4)
        slurm.call("scontrol", "update", "nodename=n3", "state=resume")
        hurt.is_done(2)
        hurt.goes_on(3, last, "the preempted job")
        check(hurt.last_step() == last + 4, "up to the end")
        limited.is_done(1)
        limited.goes_on(1, limit, "the job that was over its time")
        check(limited.last_step() == limit + 4, "up to the end")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--mpiexec", default="mpirun")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    arguments = parser.parse_args()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    lab = e2e.Lab(arguments)
    lab.bin = lab.bin.resolve()
    table = launch.Table(lab)
    begin = time.monotonic()
    try:
        whole(table)
        end = time.monotonic() + 10
        while descendants() and time.monotonic() < end:
            time.sleep(0.1)
        left = descendants()
        check(not left, f"no process is left{left or ''} ({time.monotonic() - begin:.1f} s)")
    except CannotRunSlurm as why:
        print(f"skipped: {why}", flush=True)
        lab.skipped = True
    except SlurmFailed as why:
        check(False, f"Slurm works: {why}")
    finally:
        for pid in descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        if arguments.keep:
            print(f"kept: {lab.folder}")
        else:
            lab.close()
    print(f"{len(e2e.failures)} failures")
    return 1 if e2e.failures else 77 if lab.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
