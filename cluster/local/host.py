"""One host: a network card, namespaces, a folder as its disk, and a power state."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from ray_learngene.errors import UserError

BOOT_SECONDS = 20
_INIT = Path(__file__).with_name("host.sh")


def ip(*arguments: str, check: bool = True) -> str:
    """Run `ip` and return its output; with `check`, a failure raises `UserError`."""
    ran = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if check and ran.returncode:
        raise UserError(f"ip {shlex.join(arguments)}: {ran.stderr.strip()}")
    return ran.stdout


@dataclass(frozen=True)
class Host:
    """A simulated machine on the bridge `lg<network>`.

    Attributes:
        network: Number of the bridge and of the subnet 10.213.<network>.0/24.
        number: Last byte of the host's address.
        folder: The host's disk, its only writable folder.
    """

    name: str
    network: int
    number: int
    folder: Path

    @property
    def address(self) -> str:
        return f"10.213.{self.network}.{self.number}"

    @property
    def namespace(self) -> str:
        return f"lg{self.network}-{self.name}"

    @property
    def _plug(self) -> str:
        return f"lg{self.network}-{self.number}"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def install(self, names: Mapping[str, str]) -> None:
        """Create the host's disk and network card; `names` maps the host names that it resolves to addresses."""
        for each in ("home", "tmp"):
            (self.folder / each).mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        if self.namespace in ip("netns", "list").split():
            return
        ip("netns", "add", self.namespace)
        ip("link", "add", self._plug, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip("link", "set", self._plug, "master", f"lg{self.network}")
        ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.namespace, "link", "set", "lo", "up")
        ip("-n", self.namespace, "link", "set", "eth0", "up")

    def power_on(
        self, command: Sequence[str], environment: Mapping[str, str], *, shared_memory: str, code: Sequence[Path]
    ) -> None:
        """Boot the host; `command` is its service, which is restarted when it ends.

        Args:
            shared_memory: Size of /dev/shm, in the syntax of `mount`.
            code: Folders of its programs, mounted read-only.

        Raises:
            UserError: the host does not boot; its log has the reason.
        """
        if self.init() is not None:
            return
        ip("link", "set", self._plug, "up")
        booted = self.folder / "booted"
        booted.unlink(missing_ok=True)
        isolate = ["unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *isolate]
                + ["bash", str(_INIT), self.name, str(self.folder), shared_memory, ":".join(map(str, code)), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(environment),
                start_new_session=True,
            )
        deadline = time.monotonic() + BOOT_SECONDS
        while not booted.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
                raise UserError(f"{self.name} does not boot: {' '.join(last) or 'no answer'} ({self.log})")
            time.sleep(0.01)
        init = psutil.Process(process.pid).children()[0]
        (self.folder / "pid").write_text(f"{init.pid} {init.create_time()}")

    def power_off(self) -> None:
        """Cut the network, then kill every process, so that peers see no closed connection and no reset."""
        ip("link", "set", self._plug, "down", check=False)
        init = self.init()
        if init is not None:
            outside = init.parent()  # `unshare`, which ends with init
            init.kill()  # also kills all processes of the namespace
            psutil.wait_procs([init, *([outside] if outside else [])], timeout=BOOT_SECONDS)
        (self.folder / "pid").unlink(missing_ok=True)

    def remove(self) -> None:
        """Power the host off and remove it from the network."""
        self.power_off()
        ip("link", "delete", self._plug, check=False)
        ip("netns", "delete", self.namespace, check=False)

    def init(self) -> psutil.Process | None:
        """Return the host's first process; None while it is off."""
        try:
            pid, created = (self.folder / "pid").read_text().split()
            process = psutil.Process(int(pid))
            alive = process.create_time() == float(created) and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None
        return process if alive else None

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` on this host.

        Raises:
            UserError: the host is off.
        """
        init = self.init()
        if init is None:
            raise UserError(f"{self.name} is off: python -m cluster.local on {self.name}")
        return ["nsenter", "--target", str(init.pid), "--all", "--", *command]

    def processes(self) -> list[psutil.Process]:
        """List the host's processes, as this machine sees them."""
        init = self.init()
        return init.children(recursive=True) if init is not None else []

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the host's processes."""
        # `python` in a job's command line is the interpreter of this process, even if its environment is not activated
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
        return {"PATH": path, "LANG": "C.UTF-8", **given, "HOME": str(self.folder / "home")}
