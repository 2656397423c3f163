"""timm's architectures by name, read from its files: what says that a name is wrong without importing torch."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from ray_learngene.errors import UserError, did_you_mean
from ray_learngene.provenance import METHODS_GROUP


def may_exist(name: str) -> bool:
    """Return False for a name that timm cannot know; True where timm is missing or a method's package may add to it."""
    if not _source() or entry_points(group=METHODS_GROUP):
        return True
    return name in _names() or bool(name and f"'{name}'" in _source())  # deprecated names are quoted


def no_architecture(name: str) -> UserError:
    """The error of a student that timm does not know, with similar names or such as have a word of it."""
    known, words = _names(), [word for word in name.split("_") if len(word) > 4]  # such as that of `dinov3_convnext`
    having = (one for one in known if any(word in one.split("_") for word in words))
    near = did_you_mean(_as_timm(name), known, most=3) or did_you_mean(name, having, most=3, likeness=0)
    return UserError(f"timm has no architecture {name!r}{near}")


def _as_timm(name: str) -> str:
    """Return a name of DINO's authors, such as `dinov3_vits16`, in timm's order: `vit_small_patch16_dinov3`."""
    found = re.fullmatch(r"(dinov\d)_vit([sblg])(\d+)(\w*)", name)
    if not found:
        return name
    family, size, patch, rest = found.groups()
    sizes = {"s": "small", "b": "base", "l": "large", "g": "giant"}
    return f"vit_{sizes[size]}_patch{patch}{rest}_{family}"


def no_model(name: str, flag: str) -> UserError:
    """The error of an ancestry model or source that timm does not know: what the name may stand for."""
    if name.startswith(("ancestries/", "descendants/")):
        return UserError(f"{flag} {name}: timm has no such model; write store:{name} for one in the store")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return UserError(f"{flag} {name}: this is a folder; write local-dir:{name} for a timm model folder")
    if folder.parent.is_dir() and folder.suffix in (".safetensors", ".bin", ".pth", ".pt"):
        return UserError(
            f"{flag} {name}: this is a file; give the timm model folder that it is in, local-dir:{folder.parent}"
        )
    kind, colon, _ = name.partition(":")
    if colon:
        near = did_you_mean(kind, ("store", "local-dir", "hf-hub"))
        return UserError(f"{flag} {name}: models are at store:, local-dir: or hf-hub:, not at {kind}:{near}")
    if name.count("/") == 1:
        return UserError(
            f"{flag} {name}: timm has no such model; write hf-hub:{name} for one on the hub, local-dir:{name} for a "
            "folder"
        )
    near = did_you_mean(name.split(".")[0], _names(), most=3)
    others = "; write store:ancestries/NAME for one in the store, local-dir:FOLDER for a folder"
    return UserError(f"{flag} {name}: timm has no such model{near or others}")


@cache
def _source() -> str:
    """The text of timm's model files; empty without timm."""
    found = find_spec("timm")
    folders = (found and found.submodule_search_locations) or ()
    return "\n".join(path.read_text() for folder in folders for path in sorted(Path(folder, "models").rglob("*.py")))


@cache
def _names() -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"^@register_model\s+def (\w+)", _source(), re.MULTILINE)))
