"""A vision transformer whose parameters are a differentiable function of *genes*. Most methods train one.

A method only defines how its genes *generate* the state dict of a plain timm model. The auxiliary model runs timm's own
forward pass on the generated parameters, so a descendant computes exactly the function that was trained.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ray_learngene.config.image import ImageShape
from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene, Method
from ray_learngene.models.blocks import set_drop_path
from ray_learngene.models.build import build, build_with, meta_model, shapes_of
from ray_learngene.models.checkpointing import checkpoint_blocks
from ray_learngene.models.compile import compile_layers
from ray_learngene.models.features import Read
from ray_learngene.models.layout import block_lists, chains, resampled
from ray_learngene.models.meta import on_meta
from ray_learngene.models.specs import Spec
from ray_learngene.models.swapping import swapped

Genes = Mapping[str, Tensor]
State = dict[str, Tensor]

# Genes whose names contain one of these have no weight decay, like the 1-D parameters that they generate; neither have
# genes that are named after a parameter without decay.
_NOT_DECAYED = ("norm", "bias", "pos_embed", "scaler")


@lru_cache(maxsize=64)
def prototype(
    spec: Spec, drop_path: float = 0.0, compiled: bool = False, checkpointed: bool = False, device: str = "cpu"
) -> nn.Module:
    """Build the spec's timm model on the meta device, to be called with generated parameters on `device`.

    The cache is outside the modules that use it, so that neither their state dicts nor their copies contain the model.
    """
    with on_meta():
        model: nn.Module = build(spec)
    fill_buffers(model, torch.device(device))
    set_drop_path(model, drop_path)
    if compiled:
        compile_layers(model)
    if checkpointed:
        checkpoint_blocks(block for name in block_lists(spec) for block in model.get_submodule(name).children())
    return model


@torch.no_grad()
def fill_buffers(model: nn.Module, device: torch.device) -> None:
    """Compute the buffers of a model on the meta device that no state dict holds; its parameters stay on meta."""
    if not any(True for _ in model.buffers()):
        return
    model.to_empty(device=device)
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()  # type: ignore[operator]
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"))


def initialised(spec: Spec, seed: int, state: Mapping[str, Tensor], image: ImageShape) -> nn.Module:
    """Build a spec's timm model with a part of its parameters given, which were trained on images of a shape."""
    return build_with(spec, resampled(state, spec, image), seed=seed)


def require_no_statistics(method: str, spec: Spec) -> None:
    """Check that a model has no running statistics, such as BatchNorm's, which cannot be generated.

    Raises:
        UserError: it has.
    """
    model = meta_model(spec)
    statistics = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
    if statistics:
        raise UserError(
            f"{method} cannot train {spec.architecture}: it has running statistics ({min(statistics)}), which "
            "shared blocks would mix; use a method that extracts, such as heur-lg or weight-selection"
        )


@lru_cache(maxsize=64)
def not_decayed(spec: Spec) -> frozenset[str]:
    """Return the parameters that timm does not decay; those of blocks also as `CHAIN.parameter`, for all layers."""
    model = meta_model(spec)
    named: set[str] = getattr(model, "no_weight_decay", set)()
    free = {name for name, parameter in model.named_parameters() if parameter.ndim < 2 or name in named}
    firsts = {f"{blocks[0]}.": f"{chain}." for chain, blocks in chains(spec).items()}
    of_chains = {name.replace(first, firsts[first]) for name in free for first in firsts if name.startswith(first)}
    return frozenset(free | of_chains)


def attribute_of(gene: str) -> str:
    """Return the name of the attribute that holds a gene; names of parameters cannot contain dots."""
    return gene.replace(".", "__")


def gene_of(attribute: str) -> str:
    """Return the name of the gene that an attribute holds."""
    return attribute.replace("__", ".")


class GeneratedVisionTransformer(nn.Module):
    """timm's model of `spec` on generated parameters: images `[B, *spec.image]` to logits `[B, classes]`.

    Genes are parameters of this module and not of a child: ZeRO-3 gathers parameters when it calls their own module.

    Args:
        genes: Initial values of the trained genes.
        generate: Maps genes and a spec to the state dict of the spec's timm model, differentiably. It is pickled with
            the module.
        drop_path: Stochastic depth rate of the last layer; it rises linearly with depth.
        frozen: Genes that are not trained.
    """

    def __init__(
        self,
        spec: Spec,
        genes: Genes,
        generate: Callable[[Genes, Spec], State],
        *,
        drop_path: float = 0.0,
        frozen: Genes | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.generate, self.drop_path = spec, generate, drop_path
        self.compiled = self.checkpointed = False
        for name, tensor in genes.items():
            self.register_parameter(attribute_of(name), nn.Parameter(tensor.clone()))
        for name, tensor in (frozen or {}).items():
            self.register_buffer(attribute_of(name), tensor.clone())

    def genes(self) -> State:
        """Return trained and frozen genes by name."""
        own: list[tuple[str, Tensor]] = [*self._parameters.items(), *self._buffers.items()]  # type: ignore[list-item]
        return {gene_of(name): tensor for name, tensor in own}

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, for timm's optimizer factory."""
        free = not_decayed(self.spec)
        return {
            name
            for name, _ in self.named_parameters()
            if any(part in name for part in _NOT_DECAYED)
            or gene_of(name) in free
            or gene_of(name).partition(".")[2] in free  # of one parameter of all layers, after a word of the method
        }

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the layers of all models generated from now on; their sizes may differ."""
        self.compiled = True

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Checkpoint the blocks of all models generated from now on, under timm's name."""
        self.checkpointed = enable

    def forward(self, images: Tensor, read: Read | None = None) -> Any:
        return self.forward_as(self.spec, images, read)

    def forward_as(
        self,
        spec: Spec,
        images: Tensor,
        read: Read | None = None,
        *,
        generate: Callable[[Genes, Spec], State] | None = None,
    ) -> Any:
        """Return the logits `[B, classes]` of the generated model of another spec, or what `read` reads of it.

        Args:
            generate: How it is generated, if not as usual.
        """
        model: nn.Module = prototype(spec, self.drop_path, self.compiled, self.checkpointed, str(images.device))
        if model.training != self.training:  # visiting all submodules costs a percent of a small model's step
            model.train(self.training)
        state = self.state_of(spec, images.device.type, generate)
        with swapped(model, state):
            return model(images) if read is None else read(model, images)

    def state_of(self, spec: Spec, device: str, generate: Callable[[Genes, Spec], State] | None = None) -> State:
        """Generate the state dict of a spec's model on a type of device."""
        # under autocast, matrix products would round norms and biases to its precision
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            state = (generate or self.generate)(self.genes(), spec)
        if odd := state.keys() ^ shapes_of(spec).keys():  # torch's own check takes as long as small layers
            raise RuntimeError(f"{sorted(odd)[0]} was not generated, or is no parameter of {spec}")
        return state

    @torch.no_grad()
    def materialise(self) -> nn.Module:
        """Build the plain timm model that computes the same function, on the CPU."""
        return initialised(self.spec, 0, self.generate(self.genes(), self.spec), self.spec.image)


class FittedVisionTransformer(GeneratedVisionTransformer):
    """A target model whose genes are fitted for some steps before it becomes plain."""

    def __init__(
        self, spec: Spec, genes: Genes, generate: Callable[[Genes, Spec], State], frozen: Genes, steps: int, lr: float
    ) -> None:
        super().__init__(spec, genes, generate, frozen=frozen)
        self.fit_steps, self.fit_lr = steps, lr


class GeneratingMethod(Method):
    """A method whose genes generate the parameters of the auxiliary model and of every descendant."""

    @abstractmethod
    def initial(self, spec: Spec) -> State:
        """Initialise the genes of an auxiliary model from torch's global random generator."""

    @abstractmethod
    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        """Generate the state dict of the timm model of `spec` from genes trained at `source`.

        The state has no head if the genes hold none for the spec's classes.

        Raises:
            UserError: the genes cannot expand to that spec.
        """

    def started(self, genes: Genes, spec: Spec) -> State:
        """Return the genes of an auxiliary model of `spec` that starts from those of a learngene."""
        return dict(genes)

    def auxiliary(self, spec: Spec, *, drop_path: float = 0.0) -> nn.Module:
        require_no_statistics(self.name, spec)
        return GeneratedVisionTransformer(spec, self.initial(spec), Generator(self, spec), drop_path=drop_path)

    def extract(self, auxiliary: nn.Module) -> Learngene:
        if not isinstance(auxiliary, GeneratedVisionTransformer):
            raise UserError(f"method {self.name!r} needs its own auxiliary model: use `learngene distill`")
        genes = {name: tensor.detach().cpu().clone() for name, tensor in auxiliary.genes().items()}
        return Learngene(self.name, self.options(), auxiliary.spec, genes)

    @torch.no_grad()
    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> nn.Module:
        made = self.as_made(learngene)
        assert learngene is not None
        state = made.generate(learngene.tensors, learngene.spec, spec)
        return initialised(spec, seed, state, learngene.spec.image)


class Generates(Protocol):
    """A method that generates parameters."""

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State: ...


class Generator:
    """A method's `generate` with a fixed `source`. Unlike a closure it can be pickled."""

    def __init__(self, method: Generates, source: Spec) -> None:
        self.method, self.source = method, source

    def __call__(self, genes: Genes, spec: Spec) -> State:
        return self.method.generate(genes, self.source, spec)
