"""Pretend hosts on one machine: a real multi-host cluster's worth of network, ssh, disks and process tables, for tests.

Each host has network, mount, PID, UTS and IPC namespaces of its own: an address, a host name, an sshd, its own /tmp, /root,
/run, /dev/shm and /proc. `client` is the user's laptop: no sshd, no shared folder. `head`, `w1`, `w2`, ... share /srv/storage,
their stand-in for NFS. The checkout and the virtual environment are there read-only, at their own paths, and so is the rest of
the machine. The hosts reach each other and nothing else: there is no route out, and the machine's own network is not touched.

No namespace has a name: all of it ends with the processes in it, and these end with the test's process, however that ends.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
STORAGE = "/srv/storage"
KEY = "/root/.ssh/cluster_key"

_INIT = Path(__file__).with_name("host_init.sh")
_TOOLS = ("ip", "unshare", "nsenter", "mount", "ssh", "ssh-keygen", "rsync", "pgrep", "curl", "setsid")
_SSHD = Path("/usr/sbin/sshd")
_PACKAGES = "iproute2 openssh-server openssh-client rsync procps curl util-linux"
_PATH = f"{Path(sys.prefix) / 'bin'}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")
_TRIAL = """\
ip link add dev br0 type bridge
ip link add dev a type veth peer name b
mount --make-rprivate /
mount -t tmpfs trial /srv
"""
"""All of what a host needs that a machine may refuse; it is gone when the command ends."""
_SSHD_CONFIG = """\
ListenAddress {address}
HostKey /srv/disk/etc/host_key
AuthorizedKeysFile /srv/disk/etc/authorized_keys
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PrintMotd no
PrintLastLog no
MaxStartups 50:30:100
ClientAliveInterval 5
"""


@dataclass(frozen=True)
class _Running:
    """A host that is on: the process that holds its namespaces, its process 1, and what else belongs to the host itself."""

    holder: subprocess.Popen[str]
    init: int
    own: frozenset[int]


@dataclass
class Hosts:
    """The hosts of one test; use `Hosts.start`."""

    folder: Path
    addresses: Mapping[str, str]
    _switch: subprocess.Popen[str]
    _running: dict[str, _Running] = field(default_factory=dict)

    @staticmethod
    def missing() -> str | None:
        """Return why this machine cannot have such hosts; None if it can."""
        if os.geteuid() != 0:
            return "pretend hosts need root"
        lacking = [tool for tool in _TOOLS if shutil.which(tool) is None]
        lacking += [] if _SSHD.exists() else ["sshd"]
        if lacking:
            return f"pretend hosts need {', '.join(lacking)}: apt-get install {_PACKAGES}"
        done = subprocess.run(
            ["unshare", *_NAMESPACES, "--fork", "sh", "-ec", _TRIAL], capture_output=True, text=True, check=False
        )
        return None if done.returncode == 0 else f"pretend hosts cannot be made here: {done.stderr.strip()}"

    @classmethod
    @contextmanager
    def start(cls, workers: int = 2, *, folder: Path) -> Iterator[Hosts]:
        """Start the hosts, their disks in `folder`; end every process on them when the context ends."""
        names = ["client", "head", *(f"w{number}" for number in range(1, workers + 1))]
        addresses = {name: f"10.77.0.{2 if name == 'client' else 8 + number}" for number, name in enumerate(names, 1)}
        # The switch is a network namespace with a bridge. It ends when the pipe to its process closes.
        switch = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link add dev br0 type bridge && ip link set br0 up && echo ready && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        hosts = cls(folder, addresses, switch)
        try:
            assert _line(switch) == "ready", "there is no switch"
            hosts._make_disks()
            for name in names:
                hosts.boot(name)
            yield hosts
        finally:
            for name in list(hosts._running):
                hosts.poweroff(name)
            switch.kill()
            switch.communicate()

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str = "/root",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host as its root and return it with its output; with `check`, fail unless it exits with 0."""
        # `timeout` runs on the host: to kill what entered the namespaces would leave the command itself behind.
        bounded = ["timeout", "--kill-after=5", str(timeout), *argv]
        done = subprocess.run(
            self._command(host, bounded, env, cwd), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, (
            f"{host}: {' '.join(argv)} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def spawn(
        self, host: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str = "/root"
    ) -> subprocess.Popen[str]:
        """Start a command on a host. The process returned only stands for it: use `kill` to send the command a signal."""
        return subprocess.Popen(
            self._command(host, argv, env, cwd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def is_on(self, host: str) -> bool:
        """Tell whether a host has power."""
        return host in self._running

    def boot(self, host: str) -> None:
        """Start a host that is off."""
        assert not self.is_on(host), f"{host} is on already"
        disk = self._disk(host)
        with (disk / "console.log").open("a") as console:
            holder = self._holder(host, disk, console)
        try:
            init = _line(holder)
            assert init.isdigit(), f"{host} has no process 1: {(disk / 'console.log').read_text()}"
            self._plug(host, int(init))
            assert holder.stdin
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert _line(holder) == "ready", f"{host} does not start: {(disk / 'console.log').read_text()}"
        except BaseException:
            _end(holder)
            raise
        self._running[host] = _Running(holder, int(init), frozenset(_members(int(init))))

    def poweroff(self, host: str) -> None:
        """Take a host's power away: no process of it says goodbye, and its connections stay open at the other end."""
        running = self._running.pop(host)
        self._in_switch("ip", "link", "delete", "dev", host, check=False)
        # With process 1 the kernel kills every process of its PID namespace, and it is gone only when they are.
        if running.init in _members(running.init):
            os.kill(running.init, signal.SIGKILL)
        _end(running.holder)

    def unplug(self, host: str) -> None:
        """Take out a host's network cable."""
        self._in_switch("ip", "link", "set", "dev", host, "down")

    def plug(self, host: str) -> None:
        """Put a host's network cable back."""
        self._in_switch("ip", "link", "set", "dev", host, "up")

    def pids(self, host: str) -> list[tuple[int, str]]:
        """Return (pid on this machine, command line) of what runs on a host besides its process 1 and the sshd that listens."""
        if not self.is_on(host):
            return []
        running = self._running[host]
        lines = ((pid, _command_line(pid)) for pid in _members(running.init) if pid not in running.own)
        return [(pid, line) for pid, line in lines if line]

    def find(self, host: str, pattern: str) -> list[int]:
        """Return the pids of the processes of a host whose command line the pattern is found in."""
        return [pid for pid, line in self.pids(host) if re.search(pattern, line)]

    def kill(self, host: str, pattern: str, number: signal.Signals = signal.SIGKILL) -> list[int]:
        """Send a signal to every process of a host whose command line the pattern is found in; return their pids."""
        found = self.find(host, pattern)
        for pid in found:
            os.kill(pid, number)
        return found

    def path(self, host: str, path: str) -> Path:
        """Return where a file of a host is on this machine: below /root, /tmp or the shared folder."""
        if host != "client" and path.startswith(STORAGE):
            return self.folder / "storage" / path.removeprefix(STORAGE).lstrip("/")
        assert path.startswith(("/root", "/tmp")), f"{path} is not on a disk of {host}"
        return self._disk(host) / path.lstrip("/")

    def _disk(self, host: str) -> Path:
        return self.folder / "disks" / host

    def _command(self, host: str, argv: Sequence[str], env: Mapping[str, str] | None, cwd: str) -> list[str]:
        settings = {"HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "TERM": "dumb", "PATH": _PATH, **(env or {})}
        enter = ["nsenter", "--target", str(self._running[host].init), *_NAMESPACES]
        return [
            *enter,
            "env",
            "--ignore-environment",
            f"--chdir={cwd}",
            *(f"{key}={value}" for key, value in settings.items()),
            *argv,
        ]

    def _holder(self, host: str, disk: Path, console: IO[str]) -> subprocess.Popen[str]:
        storage = "" if host == "client" else str(self.folder / "storage")
        keep = dict.fromkeys([str(ROOT), sys.prefix, sys.base_prefix])
        return subprocess.Popen(
            [
                *("unshare", *_NAMESPACES, "--fork", "--kill-child"),
                *("bash", str(_INIT), host, self.addresses[host], str(disk), storage, *keep),
            ],
            env={"PATH": _PATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=console,
            text=True,
        )

    def _plug(self, host: str, init: int) -> None:
        # The same hardware address after every boot, as a real host: its neighbours remember it.
        mac = "02:00:" + ":".join(f"{int(part):02x}" for part in self.addresses[host].split("."))
        peer = ("peer", "name", "eth0", "address", mac, "netns", str(init))
        self._in_switch("ip", "link", "add", "dev", host, "type", "veth", *peer)
        self._in_switch("ip", "link", "set", "dev", host, "master", "br0", "up")

    def _in_switch(self, *argv: str, check: bool = True) -> None:
        done = subprocess.run(
            ["nsenter", "--target", str(self._switch.pid), "--net", *argv], capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"

    def _make_disks(self) -> None:
        """Make what survives a power-off: home directories, ssh keys, the names of the hosts."""
        (self.folder / "storage").mkdir(parents=True)
        key = self.folder / "key"
        _make_key(key)
        names = "".join(f"{address} {name}\n" for name, address in self.addresses.items())
        for host, address in self.addresses.items():
            disk = self._disk(host)
            for folder in ("root/.ssh", "tmp", "etc"):
                (disk / folder).mkdir(parents=True)
            (disk / "root/.ssh").chmod(0o700)
            (disk / "etc/hosts").write_text(f"127.0.0.1 localhost\n{names}")
            (disk / "etc/resolv.conf").touch()
            # Ray's commands run in login shells that also read .bashrc, which must therefore be there.
            (disk / "root/.bash_profile").write_text(f"export PATH={_PATH}\n")
            (disk / "root/.bashrc").touch()
            if host == "client":
                shutil.copy(key, disk / "root/.ssh" / Path(KEY).name)
                continue
            shutil.copy(key.with_suffix(".pub"), disk / "etc/authorized_keys")
            _make_key(disk / "etc/host_key")
            (disk / "etc/sshd_config").write_text(_SSHD_CONFIG.format(address=address))


def _make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)


def _line(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints; empty when it has ended."""
    assert process.stdout
    return process.stdout.readline().strip()


def _end(holder: subprocess.Popen[str]) -> None:
    """Wait for a host's processes to be gone, killing them if the host has not ended by itself."""
    try:
        holder.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        holder.kill()
        holder.communicate()


def _members(init: int) -> Iterator[int]:
    """Yield the pids of the PID namespace that `init` is process 1 of."""
    try:
        namespace = Path(f"/proc/{init}/ns/pid").readlink()
    except OSError:
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns/pid").readlink() == namespace:
                    yield int(entry.name)
            except OSError:
                continue  # it has ended


def _command_line(pid: int) -> str:
    """Return a process's command line; empty for one that has ended and waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
