"""An ssh server of a test's own on the loopback, and hosts by name that it serves.

Keys, configurations and port are its own; the machine's server and its users' keys are left alone.
"""
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

PROGRAMS = ("/usr/sbin/sshd", "ssh", "ssh-keygen")


def missing():
    """The first program that is needed and not there; None if all are."""
    return next((p for p in PROGRAMS if shutil.which(p) is None), None)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class SshServer:
    """Serves `names` below `folder`. A context manager.

    `config` is an ssh_config in which every name is this machine, and `path` a folder with an ssh that reads it, as if it were the
    user's (ssh looks for that where the password file says, whatever HOME is). As daemons of one machine would meet in one session
    folder, which Open MPI does not expect, each name has a TMPDIR of its own.
    """

    def __init__(self, folder, names):
        self.folder, self.names = pathlib.Path(folder) / "ssh", names
        self.config, self.path = self.folder / "config", self.folder / "bin"
        self.port = free_port()
        self.process = None

    def __enter__(self):
        self.folder.mkdir(mode=0o700)
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "pecan-test", "-f", str(self.folder / name)],
                           check=True, stdin=subprocess.DEVNULL)
        shutil.copy(self.folder / "user_key.pub", self.folder / "authorized_keys")
        key = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}\n")
        server = self.folder / "sshd_config"
        server.write_text(f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self.folder}/host_key\nPidFile none\nUsePAM no\n"
                          f"PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
                          f"AuthorizedKeysFile {self.folder}/authorized_keys\nStrictModes no\nAcceptEnv TMPDIR\n"
                          # A bash of level 1 that sshd runs reads ~/.bashrc, whatever that does.
                          f"SetEnv SHLVL=1\n"
                          f"MaxStartups 100\nPrintMotd no\nLogLevel ERROR\n")
        self.path.mkdir()
        (self.path / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.config} "$@"\n')
        (self.path / "ssh").chmod(0o755)
        for name in self.names:
            (self.folder / name).mkdir()
        self.answer(*self.names)
        if os.geteuid() == 0:
            pathlib.Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd refuses to start without it
        with open(self.folder / "sshd.log", "w") as log:
            self.process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(server)], stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, start_new_session=True)
        end = time.monotonic() + 30
        while time.monotonic() < end and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.02)
        words = (self.folder / "sshd.log").read_text().strip()
        self.__exit__(None, None, None)
        raise RuntimeError(f"sshd does not answer on port {self.port}: {words}")

    def __exit__(self, *unused):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def answer(self, *names):
        """From now on these hosts can be reached; the others refuse the connection."""
        dead = free_port()
        text = "".join(f"Host {n}\n  Port {self.port if n in names else dead}\n  SetEnv TMPDIR={self.folder}/{n}\n" for n in self.names)
        draft = self.config.with_suffix(".new")
        draft.write_text(f"{text}Host *\n  HostName 127.0.0.1\n  IdentityFile {self.folder}/user_key\n  IdentitiesOnly yes\n"
                         f"  UserKnownHostsFile {self.folder}/known_hosts\n  StrictHostKeyChecking yes\n  BatchMode yes\n"
                         f"  LogLevel ERROR\n")
        draft.rename(self.config)
