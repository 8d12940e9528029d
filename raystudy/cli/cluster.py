"""Commands about a cluster: its head's server, its secrets, the tunnel to it, spot notices."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.option("--host", metavar="ADDR", help="The head's private address; by default the one that Ray uses.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="The port of the MLflow server.")
@click.option(
    "--allowed-host", "allowed_hosts", multiple=True, metavar="NAME:PORT", help="A further name under which clients call it."
)
@click.option("--ray-pid", metavar="PID", type=click.IntRange(min=1), help="End with this process, not with the Ray head here.")
@click.option("--without-ray", is_flag=True, help="Run until --stop, with or without Ray.")
@click.option("--stop", is_flag=True, help="End the server.")
def head(
    host: str | None, port: int, allowed_hosts: tuple[str, ...], ray_pid: int | None, without_ray: bool, stop: bool
) -> None:
    """Run the cluster's MLflow server on its head: supervised, with authentication, until Ray ends."""
    from raystudy.cluster import head as server

    if stop:
        click.echo("the head's MLflow server has ended" if server.stop_head() else "no MLflow server of a head ran here")
        return
    found = server.start_head(host, port, allowed_hosts, ray_pid=ray_pid, with_ray=not without_ray)
    click.echo(f"MLflow {'answers' if found.fresh else 'was well already'} at {found.settings.url}; its log is {found.log}")


@click.command()
@click.argument("file", metavar="[CLUSTER.yaml]", required=False, type=click.Path(path_type=Path))
def keys(file: Path | None) -> None:
    """Make a cluster's two secrets where they are missing, and name what is still to be set in its file."""
    from raystudy.cluster.keys import make_keys

    for key in make_keys(file):
        click.echo(f"{key.path} ({'made' if key.made else 'was there'})")


@click.command()
@click.argument("file", metavar="CLUSTER.yaml", type=click.Path(path_type=Path))
@click.option("--dashboard-port", default=8265, show_default=True, type=click.IntRange(1, 65535), help="Here, for Ray.")
@click.option("--mlflow-port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Here, for MLflow.")
@click.option("--print", "only_print", is_flag=True, help="Print the ssh command line instead of running it.")
def connect(file: Path, dashboard_port: int, mlflow_port: int, only_print: bool) -> None:
    """Open a tunnel to a cluster's Ray dashboard and MLflow, until Ctrl-C."""
    from raystudy.cluster.connect import check_ports, keep_open, plan_tunnel

    if not only_print:
        check_ports(dashboard_port=dashboard_port, mlflow_port=mlflow_port)
    tunnel = plan_tunnel(file, dashboard_port=dashboard_port, mlflow_port=mlflow_port)
    if only_print:
        click.echo(str(tunnel))
        return
    for name, value in tunnel.exports.items():
        click.echo(f"export {name}={value}")
    click.echo(f"the tunnel to {tunnel.head} is open until Ctrl-C; in another terminal, run the lines above", err=True)
    sys.stdout.flush()
    keep_open(tunnel)


@click.command("spot-watch")
@click.option(
    "--metadata",
    default="http://169.254.169.254",
    show_default=True,
    envvar="RAYSTUDY_SPOT_METADATA",
    metavar="URL",
    help="The instance metadata service.",
)
@click.option("--every", default=5.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds between two looks.")
def spot_watch(metadata: str, every: float) -> None:
    """On a spot machine of AWS: tell Ray when AWS takes it back, so that its trials go on elsewhere. Ends with Ray."""
    from datetime import UTC, datetime

    from raystudy.cluster.spot import InstanceMetadata, watch

    def say(line: str) -> None:
        click.echo(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}")
        sys.stdout.flush()

    watch(InstanceMetadata(metadata), say, look_every=every)
