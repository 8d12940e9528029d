"""The files that describe clusters: accepted by Ray, closed by default, and clear about what is to be filled in.

Commands of cluster.yaml are run here as Ray would send them by ssh, with stubs for what a test machine must not do.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

import raystudy

ROOT = Path(__file__).parents[1]
AWS, ONPREM, KUBERAY = ROOT / "cluster.yaml", ROOT / "clusters" / "onprem.yaml", ROOT / "clusters" / "kuberay.yaml"
RAY_UP = [AWS, ONPREM]
ALL = [*RAY_UP, KUBERAY]
END_OF_SETTINGS = "Nothing below needs to be changed"
SETTINGS = ("RAYSTUDY_HOME", "RAYSTUDY_CACHE", "RAYSTUDY_MLFLOW_STORE", "RAYSTUDY_MLFLOW_ARTIFACTS")

files = pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.name))
ray_up_files = pytest.mark.parametrize("path", RAY_UP, ids=lambda path: str(path.name))


def _text(path: Path) -> str:
    if not path.exists():
        pytest.skip(f"{path.relative_to(ROOT)} is not written yet")
    return path.read_text(encoding="utf-8")


def _cluster(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(_text(path))
    assert isinstance(content, dict)
    return content


def _commands(content: dict[str, Any]) -> list[str]:
    names = [name for name in content if name.endswith("_commands")]
    return [command for name in names for command in content[name]]


def _as_sent(command: str, **environment: str) -> list[str]:
    """Return what Ray has the machine's shell run for a command."""
    from ray.autoscaler._private.command_runner import _with_interactive
    from ray.autoscaler._private.util import with_envs

    (exported,) = with_envs([command], environment)
    return shlex.split(" ".join(_with_interactive(exported)))


class Machine:
    """Stands for a machine of the cluster: a home, and programs that note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.home, self.programs, self.calls = folder / "home", folder / "bin", folder / "calls"
        self.home.mkdir()
        self.programs.mkdir()
        self.calls.touch()
        (self.home / ".bashrc").write_text(f'export PATH="{self.programs}:$PATH"\n')

    def program(self, name: str, body: str = "") -> None:
        """Put a program in place of the machine's own."""
        path = self.programs / name
        path.write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> {self.calls}\n{body}\n')
        path.chmod(0o755)

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of a cluster file as Ray does."""
        base = {"HOME": str(self.home), "PATH": "/usr/bin:/bin"}
        return subprocess.run(
            _as_sent(command, **environment), env=base, capture_output=True, text=True, timeout=60, check=False, cwd=self.home
        )

    def called(self, name: str) -> list[str]:
        """Return the arguments of all calls of a program."""
        lines = self.calls.read_text().splitlines()
        return [line.removeprefix(f"{name} ") for line in lines if line.split(" ")[0] == name]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# --- all files -------------------------------------------------------------------------------------------------------------


@files
def test_all_that_is_to_be_set_stands_at_the_top(path: Path) -> None:
    top, line, rest = _text(path).partition(END_OF_SETTINGS + " --")
    assert line
    assert re.findall(r"SET-ME-\w", top)
    assert not re.findall(r"SET-ME-\w", rest)


@files
def test_no_file_holds_a_secret(path: Path) -> None:
    text = _text(path)
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|://[^/\s:@]+:[^/\s@]+@", text)
    assert not re.search(r"(?i)(password|secret_access_key|RAY_AUTH_TOKEN)\s*[=:]\s*\S", text)
    assert not re.search(r"\b[0-9a-f]{32,}\b", text)


@files
def test_nothing_listens_on_all_addresses(path: Path) -> None:
    assert "0.0.0.0" not in _text(path)  # noqa: S104  searched for, not bound


@files
def test_workers_and_head_say_their_version_and_limit_the_drivers(path: Path) -> None:
    text = _text(path)
    assert text.count("raystudy.version") >= (1 if path == KUBERAY else 2)
    assert text.count("study_driver") == 1


@files
def test_open_values_are_named_before_anything_is_started(path: Path, tmp_path: Path) -> None:
    from raystudy.cluster.cluster_file import check_filled_in
    from raystudy.errors import InputError

    text = _text(path)
    with pytest.raises(InputError) as told:
        check_filled_in(path)
    for value in set(re.findall(r"SET-ME-[\w-]+", text)):
        assert value in str(told.value)
    filled = tmp_path / path.name
    filled.write_text(re.sub(r"SET-ME-[\w-]+", "set", text))
    check_filled_in(filled)


# --- files for ray up ------------------------------------------------------------------------------------------------------


@ray_up_files
def test_ray_accepts_it(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(_cluster(path)))


@ray_up_files
def test_every_start_of_ray_asks_for_the_token(path: Path) -> None:
    content = _cluster(path)
    for where in ("head", "worker"):
        starts = [command for command in content[f"{where}_start_ray_commands"] if re.search(r"ray start|raystudy ", command)]
        assert starts
        assert all("RAY_AUTH_MODE=token" in command for command in starts)
    for secret in ("~/.ray/auth_token", "~/.mlflow/credentials"):
        assert content["file_mounts"][secret] == secret


@ray_up_files
def test_every_command_is_a_whole_one_for_the_shell(path: Path) -> None:
    for command in _commands(_cluster(path)):
        *_, script = _as_sent(command)
        checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, f"{checked.stderr}\n{command}"


@ray_up_files
def test_what_is_shipped_can_be_installed(path: Path, tmp_path: Path) -> None:
    content = _cluster(path)
    shipped = {name: local for name, local in content["file_mounts"].items() if not local.startswith("~")}
    assert all((ROOT / local).exists() for local in shipped.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {Path(name).name for name in shipped} >= {"raystudy", "pyproject.toml", project["readme"], *project["license-files"]}
    for name, local in shipped.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", str(ROOT / local), str(tmp_path / name)], check=True)  # keeps links, as rsync does
    assert all(file.exists() for file in tmp_path.rglob("*")), "a link leads nowhere, and Ray's autoscaler ends at it"
    # Ray reads every file of a folder here, on each `ray up`.
    assert sum(1 for local in shipped.values() for _ in (ROOT / local).rglob("*")) < 2000
    for extras in re.findall(r"raystudy-source'?\[([\w,]+)\]", _text(path)):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


@ray_up_files
def test_the_first_commands_write_the_settings_and_name_those_that_are_missing(path: Path, machine: Machine) -> None:
    write, check, *_ = _cluster(path)["setup_commands"]
    assert machine.run(write).returncode == 0
    refused = machine.run(check)
    assert refused.returncode != 0
    assert "RAYSTUDY_" in refused.stdout

    assert machine.run(re.sub(r"SET-ME-[\w-]+", "/somewhere", write)).returncode == 0
    accepted = machine.run(check)
    assert accepted.returncode == 0, accepted.stderr
    shown = machine.run(f"set -a; . ~/raystudy.env; {'; '.join(f'printenv {name}' for name in SETTINGS)}")
    assert len(shown.stdout.split()) == len(SETTINGS), shown


# --- cluster.yaml ----------------------------------------------------------------------------------------------------------


@functools.cache
def _aws() -> dict[str, Any]:
    return _cluster(AWS)


def _command(words: str) -> str:
    (found,) = [command for command in _commands(_aws()) if words in command]
    return str(found)


def test_machines_on_aws_are_started_from_nothing_and_closed() -> None:
    kinds = _aws()["available_node_types"]
    assert set(kinds) == {"head", "spot", "ondemand"}
    for kind in kinds.values():
        assert kind.get("min_workers", 0) == 0
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in kind["node_config"]["BlockDeviceMappings"])
    assert kinds["spot"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in kinds["ondemand"]["node_config"]
    assert kinds["spot"]["node_config"]["InstanceType"] == kinds["ondemand"]["node_config"]["InstanceType"]


@pytest.mark.parametrize(
    ("demands", "without_spot", "launched", "waiting"),
    [
        ([{"CPU": 1, "GPU": 1}], False, {"spot": 1}, 0),
        ([{"CPU": 1, "GPU": 1}], True, {"ondemand": 1}, 0),
        ([{"CPU": 1, "GPU": 1}] * 12, False, {"spot": 8}, 4),
        ([{"study_driver": 1}] * 3, False, {}, 3),
    ],
    ids=["a trial", "a trial, no spot machine to be had", "more trials than machines", "a queue of studies"],
)
def test_rays_autoscaler_launches(
    demands: list[dict[str, int]], without_spot: bool, launched: dict[str, int], waiting: int
) -> None:
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.schema import AutoscalerInstance
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import NodeState, NodeStatus
    from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

    content = _cluster(AWS)
    for name in ("spot", "ondemand"):  # as Ray asks AWS
        content["available_node_types"][name]["resources"] = {"CPU": 8, "GPU": 1}
    config = AutoscalingConfig(content, skip_content_hash=True)
    busy_head = AutoscalerInstance(
        cloud_instance_id="i-head",
        ray_node=NodeState(
            node_id=b"head",
            instance_id="i-head",
            ray_node_type_name="head",
            total_resources=content["available_node_types"]["head"]["resources"],
            available_resources={},
            status=NodeStatus.RUNNING,
        ),
        im_instance=Instance(
            instance_id="1",
            cloud_instance_id="i-head",
            instance_type="head",
            status=Instance.RAY_RUNNING,
            node_kind=NodeKind.HEAD,
        ),
    )
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            current_instances=[busy_head],
            resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand) for demand in demands]),
            recoverable_resource_availabilities={"spot": 0.0} if without_spot else {},
        )
    )
    assert {launch.instance_type: launch.count for launch in reply.to_launch} == launched
    assert len(reply.infeasible_resource_requests) == waiting


def _with_settings(machine: Machine) -> None:
    settings = re.sub(r"SET-ME-[\w-]+", "fs-1.efs", _aws()["setup_commands"][0])
    assert machine.run(settings.replace("/mnt/", f"{machine.home}/mnt/")).returncode == 0
    machine.program("ray", f"env > {machine.home}/ray.env")
    machine.program("raystudy", 'if [ "$1" = --version ]; then echo "raystudy, version 1.2.3"; fi')
    machine.program("ip", 'echo "1.0.0.0 via 10.0.0.1 dev ens5 src 10.0.0.7 uid 1000 "')


def _environment_of_ray(machine: Machine) -> dict[str, str]:
    lines = (machine.home / "ray.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_the_head_starts_ray_on_its_private_address_and_then_mlflow(machine: Machine) -> None:
    _with_settings(machine)
    started = machine.run(_command("ray start --head"))
    assert started.returncode == 0, started.stderr
    (options,) = [set(shlex.split(call)) for call in machine.called("ray")]
    assert {"start", "--head", "--dashboard-host=10.0.0.7", "--node-ip-address=10.0.0.7"} <= options
    assert {"--labels=raystudy.version=1.2.3", "--autoscaling-config=~/ray_bootstrap_config.yaml"} <= options
    environment = _environment_of_ray(machine)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_JOB_START_TIMEOUT_SECONDS"] == "31536000"
    assert environment["MLFLOW_TRACKING_URI"] == "http://10.0.0.7:5000"
    assert set(SETTINGS) <= set(environment)
    assert "OMP_NUM_THREADS" not in environment
    assert machine.called("raystudy")[-1] == "head --host 10.0.0.7 --port 5000"


def test_a_head_whose_mlflow_server_does_not_start_is_a_failed_ray_up(machine: Machine) -> None:
    _with_settings(machine)
    machine.program("raystudy", 'if [ "$1" = head ]; then echo "no share" >&2; exit 1; fi; echo "raystudy, version 1.2.3"')
    started = machine.run(_command("ray start --head"))
    assert started.returncode != 0
    assert "no share" in started.stderr


def test_a_worker_starts_ray_with_the_token_and_gives_up_on_a_head_that_is_gone(machine: Machine) -> None:
    _with_settings(machine)
    started = machine.run(_command("ray start --address"), RAY_HEAD_IP="10.0.0.7")
    assert started.returncode == 0, started.stderr
    (options,) = [set(shlex.split(call)) for call in machine.called("ray")]
    assert {"start", "--address=10.0.0.7:6379", "--labels=raystudy.version=1.2.3"} <= options
    environment = _environment_of_ray(machine)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_gcs_rpc_server_reconnect_timeout_s"] == "10"
    assert "OMP_NUM_THREADS" not in environment


@pytest.mark.parametrize("market", ["spot", "on-demand", ""])
def test_only_spot_machines_are_watched(machine: Machine, market: str) -> None:
    _with_settings(machine)
    machine.program("curl", f'case "$*" in *api/token*) echo a-session;; *instance-life-cycle*) echo "{market}";; esac')
    machine.program("raystudy", f"env > {machine.home}/watch.env; touch {machine.home}/watched")
    # `wait` so that the test sees the end of what goes on in the background.
    started = machine.run(_command("spot-watch") + "\nwait\n", RAY_HEAD_IP="10.0.0.7")
    assert started.returncode == 0, started.stderr
    assert machine.called("raystudy") == (["spot-watch"] if market == "spot" else [])
    if market == "spot":
        watched = (machine.home / "watch.env").read_text()
        assert "RAY_AUTH_MODE=token\n" in watched
        assert "RAY_ADDRESS=10.0.0.7:6379\n" in watched


@pytest.mark.parametrize(
    ("disks", "mounted", "done"),
    [
        ("/dev/nvme0n1 Amazon Elastic Block Store", "", []),
        ("/dev/nvme0n1 Amazon Elastic Block Store\n/dev/nvme1n1 Amazon EC2 NVMe Instance Storage", "", ["mkfs.ext4", "mount"]),
        ("/dev/nvme1n1 Amazon EC2 NVMe Instance Storage", "\n/opt/dlami/nvme", ["mkdir", "mount"]),
    ],
    ids=["no disk of its own", "an empty disk", "a disk that the image has mounted"],
)
def test_the_cache_is_on_the_machines_own_disk(machine: Machine, disks: str, mounted: str, done: list[str]) -> None:
    _with_settings(machine)
    machine.program("lsblk", f'case "$*" in *MOUNTPOINT*) printf "{mounted}\\n";; *) printf "{disks}\\n";; esac')
    machine.program("mountpoint", "exit 1")
    machine.program("sudo")
    prepared = machine.run(_command("lsblk"))
    assert prepared.returncode == 0, prepared.stderr
    cache = f"{machine.home}/mnt/raystudy-cache"
    first, *between, last = machine.called("sudo")
    assert first == f"mkdir -p {cache}"
    assert last.startswith("chown ")
    assert last.endswith(f" {cache}")
    assert [call.split()[0] for call in between] == done
    if "mkfs.ext4" in done:
        assert between == ["mkfs.ext4 -q -E nodiscard /dev/nvme1n1", f"mount /dev/nvme1n1 {cache}"]
    elif done:
        assert between == ["mkdir -p /opt/dlami/nvme/raystudy", f"mount --bind /opt/dlami/nvme/raystudy {cache}"]


def test_the_share_is_mounted_once_and_again_after_a_restart(machine: Machine, tmp_path: Path) -> None:
    _with_settings(machine)
    table = tmp_path / "fstab"
    table.touch()
    machine.program("mountpoint", "exit 1")
    machine.program("sudo", 'if [ "$1" = tee ]; then "$@"; fi')
    command = _command("nfs4").replace("/etc/fstab", str(table))
    for _ in range(2):
        mounted = machine.run(command)
        assert mounted.returncode == 0, mounted.stderr
    (line,) = table.read_text().splitlines()
    device, where, kind, options, *_ = line.split()
    assert (device, where, kind) == ("fs-1.efs:/", f"{machine.home}/mnt/raystudy", "nfs4")
    assert {"nfsvers=4.1", "hard", "_netdev"} <= set(options.split(","))
    assert f"mount {where}" in machine.called("sudo")


def test_programs_are_found_by_every_later_command_and_by_ray_down(machine: Machine) -> None:
    (machine.home / ".bashrc").write_text("case $- in *i*) ;; *) return;; esac\n")
    for _ in range(2):
        assert machine.run(_command("sed -i")).returncode == 0
    first, *rest = (machine.home / ".bashrc").read_text().splitlines()
    assert "raystudy-venv/bin" in first
    assert len(rest) == 1
    assert "raystudy-venv/bin" in machine.run("echo $PATH").stdout


# --- clusters/kuberay.yaml -------------------------------------------------------------------------------------------------

_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_GROUP = {
    "rayStartParams": _STRINGS,
    "resources": _STRINGS,
    "labels": _STRINGS,
    "template": {"type": "object", "required": ["spec"]},
}
_COUNT = {"type": "integer", "minimum": 0}
RAY_CLUSTER = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayCluster"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["headGroupSpec"],
            "additionalProperties": False,
            "properties": {
                "rayVersion": {"type": "string"},
                "authOptions": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"mode": {"enum": ["disabled", "token"]}, "secretName": {"type": "string"}},
                },
                "enableInTreeAutoscaling": {"type": "boolean"},
                "autoscalerOptions": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"version": {"enum": ["v1", "v2"]}, "idleTimeoutSeconds": {"type": "integer"}},
                },
                "headGroupSpec": {
                    "type": "object",
                    "required": ["template"],
                    "additionalProperties": False,
                    "properties": _GROUP,
                },
                "workerGroupSpecs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["groupName", "minReplicas", "maxReplicas", "template"],
                        "additionalProperties": False,
                        "properties": {
                            **_GROUP,
                            "groupName": {"type": "string"},
                            **dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), _COUNT),
                        },
                    },
                },
            },
        },
    },
}
"""What of KubeRay's RayCluster (v1) the manifest uses, and nothing else.

This is our own reading of the field names and types of KubeRay 1.6 and 1.7, not their schema: no package of a registry that we
know of carries that. A field that is new in the manifest has to be looked up there and added here. Pods, which are most of the
manifest, are checked against Kubernetes' own schemas.
"""


def _manifests() -> dict[str, dict[str, Any]]:
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(_text(KUBERAY))}


def _groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [manifest["spec"]["headGroupSpec"], *manifest["spec"]["workerGroupSpecs"]]


def test_the_manifest_is_what_kuberay_takes() -> None:
    manifest = _manifests()["RayCluster"]
    problems = [f"{list(error.path)}: {error.message}" for error in Draft202012Validator(RAY_CLUSTER).iter_errors(manifest)]
    assert not problems
    for group in _groups(manifest):
        # KubeRay refuses these where the fields of the same names are set.
        assert not {"labels", "resources"} & set(group["rayStartParams"])


def test_the_rest_of_the_manifest_is_what_kubernetes_takes() -> None:
    import kubernetes_validate

    found = _manifests()
    cluster = found.pop("RayCluster")
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        for group in _groups(cluster)
    ]
    for manifest in [*found.values(), *pods]:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**pods[0], "spec": {"containers": [{"image": "no name"}]}}, "1.37", strict=True)


def test_rays_autoscaler_reads_the_manifest() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    manifest = _manifests()["RayCluster"]
    manifest["metadata"]["namespace"] = "default"
    config = _derive_autoscaling_config_from_ray_cr(manifest)
    head, workers = config["available_node_types"]["headgroup"], config["available_node_types"]["gpu"]
    assert (head["max_workers"], head["resources"]["CPU"], head["resources"]["study_driver"]) == (0, 0, 8)
    assert "GPU" not in head["resources"]
    assert (workers["min_workers"], workers["resources"]["GPU"]) == (0, 1)
    assert workers["max_workers"] > 0


def test_the_manifest_has_the_settings_and_versions_of_the_others() -> None:
    found = _manifests()
    cluster = found["RayCluster"]["spec"]
    assert set(found["ConfigMap"]["data"]) == {*SETTINGS, "RAY_AUTH_MODE"}
    assert found["ConfigMap"]["data"]["RAY_AUTH_MODE"] == "token"
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == importlib.metadata.version("ray")
    for group in _groups(found["RayCluster"]):
        assert group["labels"] == {"raystudy.version": raystudy.__version__}
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": found["ConfigMap"]["metadata"]["name"]}}]
        mounted = {volume["name"]: volume["mountPath"] for volume in container["volumeMounts"]}
        assert mounted["home"] == found["ConfigMap"]["data"]["RAYSTUDY_HOME"]
        assert mounted["cache"] == found["ConfigMap"]["data"]["RAYSTUDY_CACHE"]
        assert "hostNetwork" not in group["template"]["spec"]


@pytest.mark.slow
def test_mlflow_is_started_in_the_heads_pod_for_as_long_as_its_ray_runs(machine: Machine) -> None:
    (container,) = _manifests()["RayCluster"]["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    shell, option, script = container["lifecycle"]["postStart"]["exec"]["command"]
    assert (shell, option) == ("bash", "-lc")
    machine.program("ray", f"test -e {machine.home}/up || {{ touch {machine.home}/up; exit 1; }}")  # well the second time
    machine.program("raystudy")
    shutil.copy("/bin/sleep", machine.programs / "gcs_server")
    with subprocess.Popen([machine.programs / "gcs_server", "60"]) as control:
        started = machine.run(script)
        control.kill()
    assert started.returncode == 0, started.stderr
    assert machine.called("ray") == ["health-check", "health-check"]
    (call,) = machine.called("raystudy")
    assert re.fullmatch(r"head --host 127\.0\.0\.1 --port 5000 --ray-pid \d+", call)


def test_the_manifest_brings_no_secret_of_its_own_and_no_way_in() -> None:
    found = _manifests()
    assert "Secret" not in found
    assert "LoadBalancer" not in json.dumps(found)
    assert "NodePort" not in json.dumps(found)
    allowed = found["NetworkPolicy"]["spec"]
    assert allowed["policyTypes"] == ["Ingress"]
    assert allowed["ingress"] == [{"from": [{"podSelector": allowed["podSelector"]}]}]
