"""A tunnel from the user's machine to the head: Ray's dashboard and MLflow listen on its private address only."""

from __future__ import annotations

import ipaddress
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from raystudy.cluster.cluster_file import ClusterFile, read_cluster_file
from raystudy.cluster.processes import ray_command
from raystudy.errors import InputError, Problem, UnreachableError

DASHBOARD = 8265
MLFLOW = 5000
_HERE = "127.0.0.1"

_ASK_S = 20.0
_FIND_S = 60.0  # asks the cloud
_OPTIONS = (
    "StrictHostKeyChecking=accept-new",  # what goes through the tunnel lets one run code on the cluster
    "PasswordAuthentication=no",
    "ConnectTimeout=8",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
)
# The address that Ray uses, from the file in which Ray notes it; in a cluster of containers that file is not on the host.
_WHERE_RAY_IS = "cat /tmp/ray/ray_current_cluster 2>/dev/null || hostname -I"


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel that is ready to be opened.

    Attributes:
        command: the ssh command line.
        head: USER@ADDRESS of the head.
        exports: the variables by which Ray and MLflow find it.
    """

    command: tuple[str, ...]
    head: str
    exports: Mapping[str, str]

    def __str__(self) -> str:
        return shlex.join(self.command)


def plan_tunnel(path: Path, *, dashboard_port: int = DASHBOARD, mlflow_port: int = MLFLOW) -> Tunnel:
    """Find the head of the cluster, and return the tunnel to it.

    Args:
        path: the file that `ray up` was given.
        dashboard_port: the port on this machine for Ray's dashboard and jobs.
        mlflow_port: the port on this machine for MLflow.

    Raises:
        InputError: the file does not say how to reach the head.
        UnreachableError: there is no head, or it does not answer.
    """
    file = read_cluster_file(path)
    head = f"{_user(file)}@{_head_address(file)}"
    ssh = ["ssh", *(part for option in _OPTIONS for part in ("-o", option)), *_identity(file)]
    private = _private_address([*ssh, head], head)
    inside = f"[{private}]" if ":" in private else private
    forwards = [f"{_HERE}:{dashboard_port}:{inside}:{DASHBOARD}", f"{_HERE}:{mlflow_port}:{inside}:{MLFLOW}"]
    command = [*ssh, "-o", "ExitOnForwardFailure=yes", "-N", *(part for forward in forwards for part in ("-L", forward)), head]
    exports = {
        "RAY_API_SERVER_ADDRESS": f"http://{_HERE}:{dashboard_port}",
        "MLFLOW_TRACKING_URI": f"http://{_HERE}:{mlflow_port}",
        "RAY_AUTH_MODE": "token",
    }
    return Tunnel(tuple(command), head, exports)


def check_ports(**ports: int) -> None:
    """Make sure that the tunnel's ports are free on this machine; they are named by their options."""
    problems = [
        Problem(f"--{name.replace('_', '-')}", f"port {port} is in use on this machine", "give a free one")
        for name, port in ports.items()
        if not _free(port)
    ]
    if problems:
        raise InputError(problems)


def keep_open(tunnel: Tunnel, opened: Callable[[], None] = lambda: None) -> None:
    """Hold the tunnel open until Ctrl-C.

    Raises:
        UnreachableError: it ended by itself.
    """
    with _interrupts_held() as release:
        process = subprocess.Popen(tunnel.command, stdin=subprocess.DEVNULL)
        try:
            release()
            opened()
            code = process.wait()
        except KeyboardInterrupt:
            return
        finally:
            process.terminate()
            process.wait()
    raise UnreachableError(f"the tunnel to {tunnel.head} has ended (ssh exited with {code})")


def _user(file: ClusterFile) -> str:
    user = file.auth.get("ssh_user")
    if not isinstance(user, str) or not user:
        raise InputError(
            Problem(f"{file.path}: auth.ssh_user", "is missing", "expected the user whom `ray up` calls on the head")
        )
    return user


def _identity(file: ClusterFile) -> list[str]:
    """Return the ssh options of the key: the file's, else those that Ray made for this region."""
    key, proxy = file.auth.get("ssh_private_key"), file.auth.get("ssh_proxy_command")
    region = file.provider.get("region")
    made = sorted(Path("~/.ssh").expanduser().glob(f"ray-autoscaler*_{region}*.pem")) if region else []
    keys = [Path(str(key)).expanduser()] if key else made
    options = [part for path in keys for part in ("-i", str(path))]
    return [*options, *(("-o", f"ProxyCommand={proxy}") if proxy else ())]


def _head_address(file: ClusterFile) -> str:
    if file.provider.get("type") == "local" and file.provider.get("head_ip"):
        return str(file.provider["head_ip"])
    try:
        asked = subprocess.run(
            [ray_command(), "get-head-ip", str(file.path)], capture_output=True, text=True, timeout=_FIND_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"ray get-head-ip {file.path} did not answer in {_FIND_S:.0f} s") from error
    except FileNotFoundError as error:
        raise UnreachableError("the command `ray` is not installed beside this Python, nor on the PATH") from error
    address = _last_line(asked.stdout)
    if asked.returncode != 0 or not address:
        reason = _last_line(asked.stderr) or address or "nothing"
        raise UnreachableError(
            f"the cluster of {file.path} has no head that Ray knows ({reason}); start it: ray up {file.path}"
        )
    return address


def _private_address(ssh: list[str], head: str) -> str:
    try:
        asked = subprocess.run(
            [*ssh, _WHERE_RAY_IS], capture_output=True, text=True, timeout=_ASK_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"{head} does not answer to ssh in {_ASK_S:.0f} s") from error
    except FileNotFoundError as error:
        raise UnreachableError("the command `ssh` is not installed") from error
    if asked.returncode != 0:
        raise UnreachableError(f"{head} cannot be reached by ssh: {_last_line(asked.stderr) or 'it does not say why'}")
    address = (asked.stdout.split() or [""])[0]
    if address.count(":") == 1 or address.startswith("["):
        address = address.rpartition(":")[0].strip("[]")
    try:
        return str(ipaddress.ip_address(address))
    except ValueError as error:
        said = address[:80] or "nothing"
        raise UnreachableError(f"{head} was asked for its private address, and said {said!r}; does Ray run there?") from error


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].strip()


def _free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HERE, port))
        except OSError:
            return False
    return True


@contextmanager
def _interrupts_held() -> Iterator[Callable[[], None]]:
    """Give a function from whose call on Ctrl-C and SIGTERM raise KeyboardInterrupt, at once if one came before.

    While ssh is being started nobody could end it: an interrupt there would leave it behind.
    """
    is_held, came = True, False

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal came
        if not is_held:
            raise KeyboardInterrupt
        came = True

    def release() -> None:
        nonlocal is_held
        is_held = False
        if came:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield release
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
