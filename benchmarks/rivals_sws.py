"""Runs the authors' SWS code; see `rivals`.

python -m benchmarks.rivals_sws CHECKOUT SIZES TEACHER [arguments of its main.py]

Registers the teacher and an auxiliary of the authors' class at another size. Replaces the authors' constant number of
classes. Without a GPU, disables the synchronisation with it.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import timm
import torch
from timm.models import register_model

from ray_learngene.models.timm_folder import load_timm

STAGES = [3, 3, 4, 3, 3]


def main() -> None:
    checkout, sizes, teacher, *arguments = sys.argv[1:]
    prepare(checkout, json.loads(sizes), teacher)
    import datasets  # type: ignore[import-not-found]  # from the authors' checkout

    build = datasets.build_dataset

    def build_dataset(is_train: bool, args: Any) -> tuple[Any, int]:
        images, _ = build(is_train, args)
        return images, len(images.classes)

    datasets.build_dataset = build_dataset
    run(checkout, arguments)


def prepare(checkout: str, sizes: dict[str, int], teacher: str) -> None:
    """Let the authors' modules be imported and find their models."""
    sys.path.insert(0, checkout)
    _register(sizes, teacher)
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda device=None: None  # type: ignore[assignment]
    load = torch.load
    torch.load = lambda path, **options: (  # type: ignore[assignment]
        {"model": load_timm(Path(teacher)).state_dict()}
        if path == "unused"
        else load(path, **{"weights_only": False, **options})
    )


def run(checkout: str, arguments: list[str]) -> None:
    sys.argv = [f"{checkout}/main.py", *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _register(sizes: dict[str, int], teacher: str) -> None:
    from SWS_vit import VisionTransformer  # type: ignore[import-not-found]  # from the authors' checkout

    shared = [STAGES, [True] * len(STAGES)]
    parts = ("norm1", "norm2", "attn_rpe", "attn_qkv", "attn_proj", "mlp_fc1", "mlp_fc2")
    widths = [sizes["width"]] * len(STAGES)

    @register_model
    def bench_auxiliary(pretrained: bool = False, **options: Any) -> Any:
        schedule = {**dict.fromkeys(parts, shared), "dim": widths, "transform_flag": [0] * sizes["depth"]}
        return VisionTransformer(
            img_size=sizes["size"], patch_size=sizes.get("patch", 16), embed_dim=widths, depth=sizes["depth"],
            mlp_ratio=4, qkv_bias=True, num_heads=[sizes["heads"]] * len(STAGES), use_cls_token=False,
            repeated_times_schedule=schedule, **options,
        )  # fmt: skip

    @register_model
    def bench_teacher(pretrained: bool = False, **options: Any) -> Any:
        return timm.create_model(f"local-dir:{teacher}", pretrained=True)


if __name__ == "__main__":
    main()
