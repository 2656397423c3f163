"""python -m benchmarks.store_bytes [--store s3://BUCKET/PREFIX | --gbit 1] [--mib 128] [--quick] [--out FILE.json]

Measures uploads and downloads of an artefact (one large file or several) against the fastest other client of the same
server. Clients are pyarrow's copy_files; botocore with one request per file, with and without signing and checksums of
the content; botocore in parts of 16 MiB on eight connections; and plain HTTP of Python's standard library, which reads
a signed URL on four connections. The sides alternate.

The server is that of the standard AWS variables (AWS_ENDPOINT_URL, ...). Without --store the benchmark starts a
SeaweedFS on loopback. `--gbit` limits loopback to that server's S3 port to the speed of a network (as root, by `tc`).
Without it, server and client compete only for the cores.

The comparison is fair: every side moves the same files between the same folder and bucket. Our side does more: it
hashes uploads, verifies downloads, and writes a manifest. The row's second ratio is of the same transfers without that
work.
Goal: at least 0.8 of the fastest client.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import pyarrow.fs
from botocore.client import BaseClient
from botocore.config import Config

from benchmarks.measure import arguments, in_turn, machine, medians, publish, seconds_of
from ray_learngene.io.filesystems import filesystem
from ray_learngene.store.download import STREAMS
from ray_learngene.store.publish import UPLOADS
from ray_learngene.store.store import Store
from tests.s3_server import running_s3_server

GOAL = 0.8
PART_BYTES = 16 * 2**20
CONNECTIONS = 8
BARE_CONNECTIONS = 4
VOLUME_MB = 4096  # volume size of the started server: with small volumes, every client waits for new ones


def main() -> None:
    args = arguments(__doc__, _add_store)
    facts = machine()
    total = 8 if args.quick else args.mib
    with _server(args.store, args.gbit) as uri:
        rounds = 2 if args.quick else args.rounds
        rows = [row for files in (1, 4) for row in _rows(uri, files, total // files, rounds)]
        network = args.gbit or ("that of the store" if args.store else "none")
        rows = [{"network (Gbit/s)": network, **row} for row in rows]
    publish("store_bytes", args, facts, rows)


@contextmanager
def _server(uri: str | None, gbit: float | None) -> Iterator[str]:
    if uri:
        yield uri
        return
    with tempfile.TemporaryDirectory() as temporary, running_s3_server(Path(temporary) / "s3", VOLUME_MB) as server:
        os.environ.update(server.environment())
        bucket = server.new_bucket()
        with _network(urlsplit(server.endpoint).port, gbit):
            yield f"s3://{bucket}/bench"


@contextmanager
def _network(port: int | None, gbit: float | None) -> Iterator[None]:
    """Limit loopback to a port to that many Gbit/s in each direction."""
    if not gbit:
        yield
        return

    def tc(words: str) -> None:
        subprocess.run(["tc", *words.split()], check=True)

    tc("qdisc add dev lo root handle 1: htb")
    try:
        for number, side in enumerate(("dport", "sport"), 1):
            tc(f"class add dev lo parent 1: classid 1:{number} htb rate {gbit}gbit burst 1mb quantum 100000")
            tc(f"filter add dev lo parent 1: protocol ip u32 match ip {side} {port} 0xffff flowid 1:{number}")
        yield
    finally:
        tc("qdisc del dev lo root")


def _add_store(parser: argparse.ArgumentParser) -> None:
    server = parser.add_mutually_exclusive_group()
    server.add_argument("--store", help="s3://bucket/prefix; the objects of this run are deleted afterwards")
    server.add_argument("--gbit", type=float, help="network speed to the started server")
    parser.add_argument("--mib", type=int, default=128, help="size of an artefact, in one file and in four")
    parser.add_argument("--rounds", type=int, default=5)


def _rows(uri: str, files: int, mib: int, rounds: int) -> list[dict[str, Any]]:
    store = Store(f"{uri.rstrip('/')}/bench-{uuid.uuid4().hex[:8]}")
    store.check(write=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder, target = Path(temporary) / "out", Path(temporary) / "in"
        folder.mkdir()
        for number in range(files):
            (folder / f"part-{number}.safetensors").write_bytes(os.urandom(mib * 2**20))
        try:
            uploads = {name: partial(seconds_of, side) for name, side in _uploads(store, folder).items()}
            up = in_turn(uploads, rounds, shuffle=True)
            downloads = {name: partial(_timed, side, target) for name, side in _downloads(store, folder).items()}
            down = in_turn(downloads, rounds, shuffle=True)
        finally:
            store.remove_tree("learngenes")
            store.remove_tree("raw")
    return [_row("publish", files, mib, up), _row("pull", files, mib, down)]


def _timed(side: Callable[[Path], Any], target: Path) -> float:
    target.mkdir()
    try:
        return seconds_of(lambda: side(target / "model"))
    finally:
        shutil.rmtree(target)


def _row(what: str, files: int, mib: int, numbers: dict[str, list[float]]) -> dict[str, Any]:
    seconds = medians(numbers)
    clients = {name: value for name, value in seconds.items() if not name.startswith("ours")}
    fastest = min(clients, key=lambda name: clients[name])
    ratio = seconds[fastest] / seconds["ours"]
    return {
        "what": what,
        "files": files,
        "MiB each": mib,
        "fastest client": fastest,
        "its MiB/s": files * mib / seconds[fastest],
        "our MiB/s": files * mib / seconds["ours"],
        "ratio": ratio,
        "ratio without hashes": seconds[fastest] / seconds["ours, bytes alone"],
        "goal": f">= {GOAL:g} ({'met' if ratio >= GOAL else 'missed'})",
        "raw_seconds": numbers,
    }


def _client(**settings: Any) -> BaseClient:
    return botocore.session.Session().create_client("s3", config=Config(max_pool_connections=64, **settings))


def _place(store: Store) -> tuple[str, str]:
    bucket, _, prefix = store.objects.full("raw").partition("/")
    return bucket, prefix


def _uploads(store: Store, folder: Path) -> dict[str, Callable[[], Any]]:
    client, (bucket, prefix) = _client(), _place(store)
    unsigned = _client(request_checksum_calculation="when_required", s3={"payload_signing_enabled": False})
    paths = sorted(folder.iterdir())

    def ours() -> None:
        store.publish("learngene", uuid.uuid4().hex, folder, {})

    def bytes_alone() -> None:
        jobs = [partial(store.objects.upload, path, f"raw/{uuid.uuid4().hex}") for path in paths]
        store.objects.each(jobs, UPLOADS)

    def arrow() -> None:
        target = f"{bucket}/{prefix}/{uuid.uuid4().hex}"
        pyarrow.fs.copy_files(
            str(folder), target, source_filesystem=pyarrow.fs.LocalFileSystem(), destination_filesystem=_arrow(store)
        )

    def put(client: BaseClient, path: Path) -> None:
        with path.open("rb") as file:
            client.put_object(Bucket=bucket, Key=f"{prefix}/{uuid.uuid4().hex}", Body=file)

    def put_all(client: BaseClient) -> None:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(partial(put, client), paths))

    def parts() -> None:
        for path in paths:
            key = f"{prefix}/{uuid.uuid4().hex}"
            upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]

            def send(number: int, key: str = key, path: Path = path, upload: str = upload) -> dict[str, Any]:
                with path.open("rb") as file:
                    file.seek(number * PART_BYTES)
                    sent = client.upload_part(
                        Bucket=bucket, Key=key, UploadId=upload, PartNumber=number + 1, Body=file.read(PART_BYTES)
                    )
                return {"PartNumber": number + 1, "ETag": sent["ETag"]}

            with ThreadPoolExecutor(CONNECTIONS) as pool:
                done = list(pool.map(send, range(-(-path.stat().st_size // PART_BYTES))))
            client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": done})

    return {
        "ours": ours,
        "ours, bytes alone": bytes_alone,
        "pyarrow": arrow,
        "botocore put": partial(put_all, client),
        "botocore put, unsigned": partial(put_all, unsigned),
        "botocore parts": parts,
    }


def _arrow(store: Store) -> pyarrow.fs.FileSystem:
    return filesystem(store.uri)[0]


def _downloads(store: Store, folder: Path) -> dict[str, Callable[[Path], Any]]:
    client, (bucket, prefix) = _client(), _place(store)
    store.publish("learngene", "pulled", folder, {}, overwrite=True)
    sizes = {f"{prefix}/pulled/{path.name}": path.stat().st_size for path in sorted(folder.iterdir())}
    for key in sizes:
        with (folder / Path(key).name).open("rb") as file:
            client.put_object(Bucket=bucket, Key=key, Body=file)

    def ours(target: Path) -> None:
        store.download("learngene", "pulled", target)

    def bytes_alone(target: Path) -> None:
        target.mkdir()

        def receive(key: str) -> None:
            with (target / Path(key).name).open("wb") as file:
                for chunk in store.objects.chunks(f"raw/pulled/{Path(key).name}", 0):
                    file.write(chunk)

        store.objects.each([partial(receive, key) for key in sizes], STREAMS)

    def arrow(target: Path) -> None:
        target.mkdir()
        pyarrow.fs.copy_files(
            f"{bucket}/{prefix}/pulled", str(target), source_filesystem=_arrow(store),
            destination_filesystem=pyarrow.fs.LocalFileSystem(),
        )  # fmt: skip

    def get(key: str, target: Path) -> None:
        with (target / Path(key).name).open("wb") as file:
            shutil.copyfileobj(client.get_object(Bucket=bucket, Key=key)["Body"], file, PART_BYTES)

    def get_all(target: Path) -> None:
        target.mkdir()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda key: get(key, target), sizes))

    def parts(target: Path) -> None:
        target.mkdir()
        for key, size in sizes.items():
            with (target / Path(key).name).open("wb") as file:
                file.truncate(size)

            def fetch(number: int, key: str = key, size: int = size) -> None:
                first = number * PART_BYTES
                span = f"bytes={first}-{min(size, first + PART_BYTES) - 1}"
                body = client.get_object(Bucket=bucket, Key=key, Range=span)["Body"]
                with (target / Path(key).name).open("r+b") as file:
                    file.seek(first)
                    shutil.copyfileobj(body, file, PART_BYTES)

            with ThreadPoolExecutor(CONNECTIONS) as pool:
                list(pool.map(fetch, range(-(-size // PART_BYTES))))

    def bare(target: Path) -> None:
        target.mkdir()
        share = -(-BARE_CONNECTIONS // len(sizes))  # connections per file
        spans = []
        for key, size in sizes.items():
            with (target / Path(key).name).open("wb") as file:
                file.truncate(size)
            signed = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
            step = -(-size // share)
            spans += [(signed, key, first, min(size, first + step)) for first in range(0, size, step)]

        def fetch(signed: str, key: str, first: int, end: int) -> None:
            request = urllib.request.Request(signed, headers={"Range": f"bytes={first}-{end - 1}"})
            with urllib.request.urlopen(request) as answer, (target / Path(key).name).open("r+b") as file:
                file.seek(first)
                shutil.copyfileobj(answer, file, 2**20)

        with ThreadPoolExecutor(BARE_CONNECTIONS) as pool:
            list(pool.map(lambda span: fetch(*span), spans))

    return {
        "ours": ours,
        "ours, bytes alone": bytes_alone,
        "pyarrow": arrow,
        "botocore get": get_all,
        "botocore parts": parts,
        "bare HTTP": bare,
    }


if __name__ == "__main__":
    main()
