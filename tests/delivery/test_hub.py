"""A model folder is what the Hugging Face Hub takes, as far as its own package can say so offline."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from huggingface_hub import CommitOperationAdd, ModelCard
from huggingface_hub.utils import validate_repo_id

import ray_learngene as lg
from tests.delivery.stores import publish_learngene

ROOT = Path(__file__).parents[2]


def test_the_documented_upload_is_valid_up_to_the_network(tmp_path: Path) -> None:
    folder = lg.expand("gene", store=publish_learngene(tmp_path), depth=2, out=tmp_path / "best").path
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)  # refuses a bad list of results
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert card.data.license is None and "License: none is stated" in card.text
    for path in folder.iterdir():
        CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path)
    (tmp_path / "best-onnx").mkdir()
    commands = re.findall(r"hf upload [^`\n]+", (ROOT / "docs/hub.md").read_text().replace("`hf upload` sends", ""))
    assert len(commands) == 2
    for words in map(shlex.split, commands):
        validate_repo_id(words[2])
        ran = subprocess.run(
            [str(Path(sys.executable).with_name("hf")), *words[1:]],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "none"},
            capture_output=True,
            text=True,
        )
        assert "offline mode is enabled" in ran.stdout + ran.stderr  # nothing before the first request refuses it
