"""What this package takes from Ray's private parts. A test that fails here says what a new version of Ray breaks."""

from __future__ import annotations

import inspect

import grpc
import pytest
import ray.tune.tune
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.tune.execution.class_cache import _ActorClassCache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.trainable import Trainable

from ray_learngene.cluster import ray_internals

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "HF_TOKEN")


def test_tune_gives_trials_settings_of_ray_and_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, every sweep on Ray shows its credentials: find where Tune makes a trial's runtime environment."""
    for name in (*SECRETS, "WANDB_API_KEY", "RAY_CHDIR_TO_TRIAL_DIR"):
        monkeypatch.setenv(name, "0")
    ray_internals.keep_credentials_out_of_trials()
    variables = _ActorClassCache().get(Trainable)._default_options["runtime_env"]["env_vars"]
    assert variables["RAY_CHDIR_TO_TRIAL_DIR"] == "0", "Tune still reads the list that is changed"
    assert not {*SECRETS, "WANDB_API_KEY"} & variables.keys()


def test_ctrl_c_is_left_to_this_package_by_ray_train() -> None:
    """If this fails, Ctrl-C ends workers of a distillation without a checkpoint."""
    assert callable(DataParallelTrainer._register_sigint_handler)
    assert "self._register_sigint_handler(" in inspect.getsource(DataParallelTrainer._initialize_and_run_controller)
    assert "TUNE_PRINT_ALL_TRIAL_ERRORS" in inspect.getsource(TuneController)
    assert "TUNE_DISABLE_SIGINT_HANDLER" in inspect.getsource(ray.tune.tune._setup_signal_catching)


def test_what_else_is_private_is_there() -> None:
    """Full disks, containers' memory and other clusters' nodes are asked about before `ray.init`."""
    assert ray_internals.temporary_folder() and ray_internals.available_memory() > 2**20
    with pytest.raises(grpc.RpcError):
        ray_internals.node_infos("127.0.0.1:9", timeout=0.1)
