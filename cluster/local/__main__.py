"""`python -m cluster.local`: see the package's docstring."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable

import cluster.local
from cluster.local import LocalCluster
from ray_learngene.errors import UserError

_FOLDER = "/tmp/learngene-cluster"


def _up(cluster: LocalCluster, flags: argparse.Namespace) -> None:
    cluster.up(flags.hosts, flags.cpus)
    print(f"# up: head, store and {flags.hosts} workers; the dashboard is at {cluster.job_server}")
    print(f"# a store: {cluster.store}; reach it with:")
    _env(cluster, flags)


def _down(cluster: LocalCluster, flags: argparse.Namespace) -> None:
    cluster.down()


def _status(cluster: LocalCluster, flags: argparse.Namespace) -> None:
    alive = cluster.alive() if cluster.exists else set()
    for host in cluster.hosts.values():
        init = host.init()
        power = f"on   {1 + len(host.processes()):3} processes" if init else "off"
        ray = "" if host.name == "store" else "   Ray alive" if host.address in alive else "   no Ray"
        print(f"{host.name:10} {host.address:14} {power}{ray}   {host.log}")


def _on(cluster: LocalCluster, flags: argparse.Namespace) -> None:
    cluster.on(flags.host)


def _off(cluster: LocalCluster, flags: argparse.Namespace) -> None:
    cluster.off(flags.host)


def _env(cluster: LocalCluster, flags: argparse.Namespace) -> None:
    for name, value in cluster.environment().items():
        print(f"export {name}={shlex.quote(value)}")


def _exec(cluster: LocalCluster, flags: argparse.Namespace) -> None:
    command, environment = cluster.command_on(flags.host, flags.command or ["bash"])
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)


def main() -> int:
    """Run one command and return the exit status (2 for a `UserError`)."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local",
        description=cluster.local.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", default=_FOLDER, help=f"folder of the cluster (default: {_FOLDER})")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[LocalCluster, argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)
        return command

    up = add("up", _up, "start all hosts that are not running and print how to reach them")
    up.add_argument("--hosts", type=int, default=2, help="worker hosts (default: 2)")
    up.add_argument("--cpus", type=float, default=1, help="CPUs of each worker host (default: 1)")
    add("down", _down, "stop and remove everything")
    add("status", _status, "print the hosts, their addresses, power and logs")
    add("env", _env, "print the variables to export to reach the cluster")
    add("off", _off, "power a host off").add_argument("host")
    add("on", _on, "power a host on").add_argument("host")
    execute = add("exec", _exec, "run a command on a host")
    execute.add_argument("host")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    flags = parser.parse_args()
    try:
        flags.run(LocalCluster(flags.folder), flags)
    except UserError as error:
        print(f"cluster.local: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
