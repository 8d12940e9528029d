"""The real `ray up cluster.yaml` against a mocked AWS: what it launches, up to the first ssh.

AWS is a real moto server. ssh is a stub that notes its arguments and fails as an unreachable machine does, so that no packet
goes to the addresses that moto makes up. So nothing here says how a machine is set up; test_cluster_yaml.py runs some of those
commands, and no test has the disks, the share and the metadata service of a real AWS machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from stores import free_port
from waiting import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
REGION = "eu-central-1"
PROFILE = "ray-autoscaler-v1"

# What the head's autoscaler does when trials wait: its reader of the file, its adapter, its provider; no Ray around them.
LAUNCH = """
import sys, time
from pathlib import Path
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

reader = FileConfigReader(config_file=sys.argv[1], skip_content_hash=True)
config = reader.get_cached_autoscaling_config()
provider = _get_node_provider(config.get_config("provider"), config.get_config("cluster_name"))
adapter = NodeProviderAdapter(provider, reader)
adapter.launch({kind: 1 for kind in sys.argv[2:]}, "request-1")
deadline = time.monotonic() + 240
while time.monotonic() < deadline:
    launched = {node.node_type for node in adapter.get_non_terminated().values()}
    if errors := adapter.poll_errors():
        sys.exit(f"{errors[0]}: {errors[0].__cause__}")
    if launched >= set(sys.argv[2:]):
        sys.exit(0)
    time.sleep(0.1)
sys.exit(f"launched only {launched}")
"""


@dataclass
class Aws:
    """A mocked AWS, and a user's machine beside it.

    Attributes:
        endpoint: the address of the moto server.
        folder: stands for the checkout, and has the user's home in it.
        environment: of the commands that the user calls.
    """

    endpoint: str
    folder: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def client(self, service: str) -> Any:
        """Return boto3's client of a service."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )

    def start(self, *command: str, log: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own."""
        with (self.folder / log).open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment | environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def log(self, name: str) -> str:
        """Return what a command has said."""
        return (self.folder / name).read_text(encoding="utf-8", errors="replace")

    def instances(self, kind: str) -> list[dict[str, Any]]:
        """Return the live instances of one node type."""
        found = self.client("ec2").describe_instances(Filters=[{"Name": "tag:ray-user-node-type", "Values": [kind]}])
        return [instance for reservation in found["Reservations"] for instance in reservation["Instances"]]

    def root_volume(self, instance: dict[str, Any]) -> dict[str, Any]:
        """Return the volume that an instance started from."""
        (mapping,) = [m for m in instance["BlockDeviceMappings"] if m["DeviceName"] == instance["RootDeviceName"]]
        (volume,) = self.client("ec2").describe_volumes(VolumeIds=[mapping["Ebs"]["VolumeId"]])["Volumes"]
        return {**volume, "DeleteOnTermination": mapping["Ebs"]["DeleteOnTermination"]}

    def end(self) -> None:
        """End all that was started."""
        for process in reversed(self.started):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=120)


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[Aws]:
    home, programs, temporary = tmp_path / "home", tmp_path / "bin", tmp_path / "tmp"
    for folder in (home / ".ray", home / ".mlflow", programs, temporary):
        folder.mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0" * 64)
    (home / ".mlflow" / "credentials").write_text("[mlflow]\n")
    ssh = programs / "ssh"
    ssh.write_text('#!/bin/sh\necho "$@" >> "$0.log"\necho "ssh: connect to host: Connection refused" >&2\nexit 255\n')
    ssh.chmod(0o755)
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_", "BOTO"))},
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": "127.0.0.1",
    }
    for name in ("raystudy", "search_spaces", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    mocked = Aws(environment["AWS_ENDPOINT_URL"], tmp_path, environment)
    try:
        mocked.start(sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port), log="moto.log")
        wait_until(lambda: _answers(mocked.endpoint), "moto to answer")
        yield mocked
    finally:
        mocked.end()


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5) as answer:  # noqa: S310  our own server
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _prepare_account(aws: Aws) -> str:
    """Make the security group that the documentation asks for, and Ray's role; return the group's id."""
    # Ray waits 15 s after it has made a role, and again after its profile.
    iam = aws.client("iam")
    iam.create_role(RoleName=PROFILE, AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": []}))
    iam.create_instance_profile(InstanceProfileName=PROFILE)
    iam.add_role_to_instance_profile(InstanceProfileName=PROFILE, RoleName=PROFILE)
    ec2 = aws.client("ec2")
    (vpc,) = ec2.describe_vpcs()["Vpcs"]
    group = ec2.create_security_group(GroupName="raystudy", Description="raystudy", VpcId=vpc["VpcId"])["GroupId"]
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "203.0.113.7/32"}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[inside, ssh])
    return str(group)


def _write_cluster_file(aws: Aws, **values: str) -> None:
    """Write cluster.yaml with its placeholders filled in."""
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    filled = re.sub(r"SET-ME-([a-z-]+)", lambda found: values[found[1].replace("-", "_")], text)
    (aws.folder / "cluster.yaml").write_text(filled, encoding="utf-8")


def _tags(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def _check_machine(aws: Aws, instance: dict[str, Any]) -> None:
    """Check what holds for all machines."""
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    user_data = aws.client("ec2").describe_instance_attribute(InstanceId=instance["InstanceId"], Attribute="userData")
    assert not user_data["UserData"].get("Value"), "all set-up goes by ssh, where its errors are seen"
    volume = aws.root_volume(instance)
    assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (150, "gp3", True)
    assert volume["DeleteOnTermination"]


@pytest.mark.timeout(180)
def test_ray_up_launches_the_head_and_then_the_workers_that_it_is_asked_for(aws: Aws) -> None:
    ec2 = aws.client("ec2")
    image = ec2.describe_images(Owners=["099720109477"])["Images"][0]["ImageId"]
    group = _prepare_account(aws)
    _write_cluster_file(aws, region=REGION, image=image, file_system="fs-0123456789abcdef0.efs.eu-central-1.amazonaws.com")

    up = aws.start("ray", "up", "-y", "cluster.yaml", log="up.log")
    calls = aws.folder / "bin" / "ssh.log"
    wait_until(lambda: (calls.exists() and calls.stat().st_size > 0) or up.poll() is not None, "ray up to call ssh")
    assert up.poll() is None, aws.log("up.log")

    (head,) = aws.instances("head")
    assert head["InstanceType"] == "m7i.2xlarge"
    assert head["ImageId"] == image
    assert "InstanceLifecycle" not in head
    tags = _tags(head)
    assert tags["ray-cluster-name"] == "raystudy"
    assert tags["ray-node-type"] == "head"
    assert tags["Name"] == "ray-raystudy-head"
    assert head["IamInstanceProfile"]["Arn"].endswith(f"/{PROFILE}")
    _check_machine(aws, head)

    # The key is new, here only, and for this user only; ssh went to the head with it.
    key = aws.folder / "home" / ".ssh" / f"{head['KeyName']}.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    assert [pair["KeyName"] for pair in ec2.describe_key_pairs()["KeyPairs"]] == [head["KeyName"]]
    assert f"-i {key}" in calls.read_text()
    assert f"ubuntu@{head['PublicIpAddress']}" in calls.read_text()

    # The group that was there is used, and has not been opened.
    assert [found["GroupId"] for found in head["SecurityGroups"]] == [group]
    (described,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert [addresses["CidrIp"] for rule in described["IpPermissions"] for addresses in rule["IpRanges"]] == ["203.0.113.7/32"]

    # The file that waits to go to the head, with which its autoscaler will launch workers.
    (prepared,) = (aws.folder / "tmp").glob("ray-bootstrap-*")
    config = json.loads(prepared.read_text())
    resources = {name: kind["resources"] for name, kind in config["available_node_types"].items()}
    assert resources["head"] == {"CPU": 0, "study_driver": 8}
    for name in ("spot", "ondemand"):
        assert (resources[name]["CPU"], resources[name]["GPU"], resources[name]["accelerator_type:L4"]) == (8, 1, 1)
    on_head = aws.folder / "on-head"
    on_head.mkdir()
    shutil.copy(prepared, on_head / "ray_bootstrap_config.yaml")
    shutil.copy(key, on_head / "ray_bootstrap_key.pem")
    kinds = ("spot", "ondemand")
    file = str(on_head / "ray_bootstrap_config.yaml")
    launch = aws.start(sys.executable, "-c", LAUNCH, file, *kinds, log="launch.log", HOME=str(on_head))
    assert launch.wait(timeout=240) == 0, aws.log("launch.log")

    for name in ("spot", "ondemand"):
        (worker,) = aws.instances(name)
        assert worker["InstanceType"] == "g6.2xlarge"
        assert worker["ImageId"] == image
        assert worker.get("InstanceLifecycle") == ("spot" if name == "spot" else None)
        tags = _tags(worker)
        assert tags["ray-cluster-name"] == "raystudy"
        assert tags["ray-node-type"] == "worker"
        assert tags["Name"] == "ray-raystudy-worker"
        assert worker["KeyName"] == head["KeyName"]
        assert worker["SecurityGroups"] == head["SecurityGroups"]
        assert "IamInstanceProfile" not in worker
        _check_machine(aws, worker)
