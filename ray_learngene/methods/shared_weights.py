"""Code that methods share: the inherited parameters outside blocks, and checks of what an expansion may change."""

from __future__ import annotations

from collections.abc import Mapping

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from ray_learngene.errors import UserError
from ray_learngene.models.specs import Spec


def require_same(method: str, source: Spec, spec: Spec, *fields: str) -> None:
    """Check that a spec has the learngene's values in the fields that the method cannot change.

    Raises:
        UserError: a field differs; the message gives its name and both values.
    """
    for field in fields:
        have, want = getattr(source, field), getattr(spec, field)
        if have != want:
            raise UserError(
                f"{method} cannot change the {field}: the learngene has {field} {have}, the spec asks for {want}"
            )


def require_head_size(method: str, source: Spec, spec: Spec) -> None:
    """Check that the head size is the learngene's: at another one the columns of q, k and v would change meaning.

    Raises:
        UserError: the head sizes differ; the message gives both.
    """
    have, want = source.width // source.heads, spec.width // spec.heads
    if have != want:
        raise UserError(
            f"{method} keeps the head size: the learngene's heads are {have} wide, those of the spec {want} "
            f"(width {spec.width} takes {spec.width // have} heads)"
        )


def singletons(tensors: Mapping[str, Tensor], source: Spec, spec: Spec) -> dict[str, Tensor]:
    """Select the parameters outside blocks: patch embedding, position embedding, final norm, and the head.

    The position embedding is resampled if the image size differs. The head is omitted if there is none or if the spec
    has another number of classes.
    """
    names = ["patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "fc_norm.weight", "fc_norm.bias"]
    if "head.weight" in tensors and spec.classes == source.classes:
        names += ["head.weight", "head.bias"]
    state = {name: tensors[name] for name in names}
    side = spec.image // spec.patch
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [side, side], num_prefix_tokens=0)
    return state


def blocks_of(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Group the parameters `blocks.<index>.<rest>` by index and rest."""
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            blocks.setdefault(int(index), {})[rest] = tensor
    return blocks
