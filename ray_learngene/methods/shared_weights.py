"""What methods inherit alike: the parameters that exist once, and the checks of what an expansion may change."""

from __future__ import annotations

from collections.abc import Mapping

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from ray_learngene.errors import UserError
from ray_learngene.models.specs import Spec


def require_same(method: str, source: Spec, spec: Spec, *fields: str) -> None:
    """Refuse a spec that differs from the learngene's in a field that the method cannot change.

    Raises:
        UserError: says which field, what the learngene has and what was asked for.
    """
    for field in fields:
        have, want = getattr(source, field), getattr(spec, field)
        if have != want:
            raise UserError(
                f"{method} cannot change the {field}: the learngene has {field} {have}, the spec asks for {want}"
            )


def require_head_size(method: str, source: Spec, spec: Spec) -> None:
    """Refuse another head size: the columns of q, k and v would mean something else.

    Raises:
        UserError: says both head sizes.
    """
    have, want = source.width // source.heads, spec.width // spec.heads
    if have != want:
        raise UserError(
            f"{method} keeps the head size: the learngene's heads are {have} wide, those of the spec {want} "
            f"(width {spec.width} takes {spec.width // have} heads)"
        )


def singletons(tensors: Mapping[str, Tensor], source: Spec, spec: Spec) -> dict[str, Tensor]:
    """Patch embedding, position embedding (resampled where the image size differs), final norm, and the head.

    The head is left out where there is none or where the spec has another number of classes.
    """
    names = ["patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "fc_norm.weight", "fc_norm.bias"]
    if "head.weight" in tensors and spec.classes == source.classes:
        names += ["head.weight", "head.bias"]
    state = {name: tensors[name] for name in names}
    side = spec.image // spec.patch
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [side, side], num_prefix_tokens=0)
    return state


def blocks_of(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The parameters `blocks.<index>.<rest>` by index and rest."""
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            blocks.setdefault(int(index), {})[rest] = tensor
    return blocks
