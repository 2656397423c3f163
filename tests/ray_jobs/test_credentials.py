"""A sweep on real Ray by a driver with credentials: none of them shows where other users of the cluster can look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray.util import state

from ray_learngene.cluster.session import ray_cluster
from ray_learngene.config import SweepConfig
from ray_learngene.store.store import Store
from tests.conftest import S3Server

LISTS = (state.list_actors, state.list_jobs, state.list_nodes, state.list_runtime_envs, state.list_tasks)


def session_folder(address: str) -> Path:
    with ray_cluster(address):
        return Path(ray._private.worker._global_node.get_session_dir_path())


def test_no_credential_of_the_driver_is_in_the_state_api_the_logs_or_the_store(
    sweep_config: SweepConfig, head: tuple[str, str], s3_server: S3Server, tmp_path: Path, monkeypatch: Any
) -> None:
    from ray_learngene.sweeps.sweep import sweep

    config = sweep_config.model_copy(update={"name": "discreet", "budgets": ("params<=60k",), "arms": ("sws",)})
    assert len(sweep(config)) == 1, "its trial reached S3 with the credentials of its node"
    store, here = Store(config.store), Store(str(tmp_path / "store"))
    gene = store.manifest("learngene", "digits")
    here.publish("learngene", "digits", store.download("learngene", "digits", tmp_path / "gene"), gene.metadata)
    tokens = {name: f"{name.lower()}-never-shown" for name in ("AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY")}
    for name, value in tokens.items():  # the S3 server knows no such session: a store in a folder
        monkeypatch.setenv(name, value)
    assert len(sweep(config.model_copy(update={"store": here.uri}))) == 1
    monkeypatch.undo()
    secrets = [text.encode() for text in (s3_server.secret, *tokens.values())]
    shown = {each.__name__: str(each(address=head[1], detail=True, limit=10_000)).encode() for each in LISTS}
    assert b"PL_DISABLE_FORK" in shown["list_actors"], "Tune's trials and their runtime environments are shown"
    shown |= {str(path): path.read_bytes() for path in session_folder(head[0]).rglob("*") if path.is_file()}
    shown |= {str(path): path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    bucket, prefix = config.store.removeprefix("s3://").split("/")
    client = s3_server.client()
    for path in store.objects.find(""):
        shown[path] = client.get_object(Bucket=bucket, Key=f"{prefix}/{path}")["Body"].read()
    assert len([name for name in shown if "discreet" in name]) > 3
    assert [(name, secret) for name, text in shown.items() for secret in secrets if secret in text] == []
