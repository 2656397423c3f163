"""The policies in `cluster/` allow all that the other files of this folder have asked of S3: this one comes last."""

from __future__ import annotations

from ray_learngene.config import SweepConfig
from tests.cluster.policy import refused
from tests.s3_recorder import Recorder


def test_the_iam_policy_allows_all_that_distillation_and_sweeps_ask_for(
    sweep_config: SweepConfig, recorder: Recorder
) -> None:
    bucket, prefix = sweep_config.store.removeprefix("s3://").split("/", 1)
    assert any("/runs/learngene-digits/" in request.path for request in recorder.requests)
    ours = {request for request in recorder.requests if request.path.split("/")[0] == bucket}  # pyarrow tries another
    assert refused("store-policy.json", bucket, prefix, ours) == []
