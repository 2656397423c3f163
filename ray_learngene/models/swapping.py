"""Call a module with other tensors in place of its own, as `torch.func.functional_call` does.

That one finds every parameter by its name at every call, which takes a twentieth of a small model's step. Here the
places are found once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import Tensor, nn

Places = dict[str, tuple[dict[str, Tensor | None], str]]
_KNOWN: WeakKeyDictionary[nn.Module, Places] = WeakKeyDictionary()


@contextmanager
def swapped(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let parameters and buffers of a module be other tensors, past the checks of `setattr`, as torch's own swap does.

    Args:
        module: Its submodules stay the same ones from call to call.
        tensors: By their names in the module. Others stay as they are.

    Raises:
        KeyError: the module has no parameter or buffer of a name.
    """
    if (places := _KNOWN.get(module)) is None:
        places = _KNOWN[module] = _places(module)
    taken = [places[name] for name in tensors]
    before = [held[name] for held, name in taken]  # all of them first: a place may have two names
    try:
        for (held, name), tensor in zip(taken, tensors.values(), strict=True):
            held[name] = tensor
        yield
    finally:
        for (held, name), own in zip(taken, before, strict=True):
            held[name] = own


def _places(module: nn.Module) -> Places:
    return {
        f"{path}.{name}" if path else name: (held, name)
        for path, owner in module.named_modules(remove_duplicate=False)
        for held in (owner._parameters, owner._buffers)
        for name in held
    }
