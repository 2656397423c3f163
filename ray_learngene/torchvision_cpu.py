"""Let `import torchvision` (hence timm) work with a CUDA build of torchvision next to a CPU-only torch.

Package registries carry CUDA builds of torchvision only. Next to a CPU-only torch their compiled operators do not load,
and the import fails with "operator torchvision::nms does not exist". Declaring the two operator schemas before the
first import cures that; `torchvision.ops.nms` itself stays unusable there. A torchvision that works is left alone.
"""

import torch

_library: torch.library.Library | None = None


def declare_missing_operators() -> None:
    """Declare `torchvision::nms` and `torchvision::qnms` where torch has neither CUDA nor HIP and they are missing."""
    global _library
    if _library is not None or torch.version.cuda or torch.version.hip:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import sys

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


declare_missing_operators()
