"""Virtual hosts: network namespaces with their own address, host name and /dev/shm, joined by a bridge.

They share file system and process ids, as hosts with shared storage share the former. Needs root. The host that
mpirun itself runs on is none of them.
"""
import os
import pathlib
import signal
import subprocess
import time


class CannotMakeHosts(Exception):
    """This machine does not allow network namespaces; the message says what failed."""


def call(*command, check=True):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if check and done.returncode != 0:
        raise CannotMakeHosts(f"{' '.join(str(c) for c in command)}: {done.stdout.strip()}")
    return done.stdout


class Hosts:
    """`count` hosts h1, h2, ... below `folder`, with `shm_mib` MiB of shared memory each. A context manager."""

    def __init__(self, folder, count=4, shm_mib=64):
        self.folder = pathlib.Path(folder)
        self.names = [f"h{i + 1}" for i in range(count)]
        self.shm_mib = shm_mib
        self.tag = f"pcn{os.getpid()}"
        self.bridge = f"b{self.tag}"[:15]
        # Names are of this process alone, and so must the network be.
        self.network = f"10.{64 + os.getpid() // 250 % 128}.{os.getpid() % 250}"
        self.agent = pathlib.Path(__file__).resolve().parent / "host_agent"

    def __enter__(self):
        try:
            call("ip", "link", "add", self.bridge, "type", "bridge")
            call("ip", "addr", "add", f"{self.network}.254/24", "dev", self.bridge)
            call("ip", "link", "set", self.bridge, "up")
            for i, name in enumerate(self.names):
                space, veth = self.space(name), self.veth(name)
                call("ip", "netns", "add", space)
                call("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", space)
                call("ip", "link", "set", veth, "master", self.bridge, "up")
                call("ip", "-n", space, "addr", "add", f"{self.network}.{i + 1}/24", "dev", "eth0")
                call("ip", "-n", space, "link", "set", "eth0", "up")
                call("ip", "-n", space, "link", "set", "lo", "up")
                (self.folder / name / "shm").mkdir(parents=True)
                self.mount(name)
                self.bring_back(name)
        except CannotMakeHosts:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *unused):
        for name in self.names:
            self.kill_all(name)
            call("ip", "netns", "del", self.space(name), check=False)
            call("umount", "-l", self.folder / name / "shm", check=False)
        call("ip", "link", "del", self.bridge, check=False)

    def space(self, name):
        return f"{self.tag}{name}"

    def veth(self, name):
        return f"v{self.tag}{name}"[:15]

    def mount(self, name):
        call("mount", "-t", "tmpfs", "-o", f"size={self.shm_mib}m", "tmpfs", self.folder / name / "shm")

    def environment(self):
        return {"PECAN_TEST_HOSTS": str(self.folder)}

    def mpi_options(self):
        """What mpirun needs to reach the hosts, and to run there without a look at the others' memory."""
        return ["--mca", "oob_tcp_if_include", f"{self.network}.0/24", "--mca", "btl_tcp_if_include",
                f"{self.network}.0/24", "--mca", "btl", "self,vader,tcp"]

    # What can happen to them.

    def pids(self, name, program=None):
        """Processes of a host; of one program only, if given."""
        pids = []
        for word in call("ip", "netns", "pids", self.space(name), check=False).split():
            try:
                command = pathlib.Path(f"/proc/{word}/comm").read_text().strip()
            except OSError:
                continue
            if program is None or command == program[:15]:
                pids.append(int(word))
        return pids

    def kill_all(self, name):
        for _ in range(50):
            pids = self.pids(name)
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if not pids:
                return
            time.sleep(0.02)

    def lose(self, name):
        """The host goes down: its processes, its memory, and it does not answer."""
        (self.folder / name / "up").unlink(missing_ok=True)
        self.kill_all(name)
        call("umount", "-l", self.folder / name / "shm")
        self.mount(name)

    def bring_back(self, name):
        """The host answers again, with empty memory if it was lost."""
        call("ip", "link", "set", self.veth(name), "up")
        (self.folder / name / "up").write_text(self.space(name))

    def cut(self, name):
        """The host's network is cut; its processes live on."""
        call("ip", "link", "set", self.veth(name), "down")
        (self.folder / name / "up").unlink(missing_ok=True)

    def segments(self):
        return [f"{name}/{file.name}" for name in self.names for file in (self.folder / name / "shm").glob("pecan.*")]
