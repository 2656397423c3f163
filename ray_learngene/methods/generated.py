"""A vision transformer whose parameters are a differentiable function of *genes*. Most methods train one.

A method only defines how its genes *generate* the state dict of a plain timm model. The auxiliary model runs timm's own
forward pass on the generated parameters, so a descendant computes exactly the function that was trained.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene, Method
from ray_learngene.models.compile import compile_layers
from ray_learngene.models.features import Read, Reading
from ray_learngene.models.specs import Spec, build, build_with, set_drop_path

Genes = Mapping[str, Tensor]
State = dict[str, Tensor]

# Genes whose names contain one of these have no weight decay, like the 1-D parameters that they generate.
_NOT_DECAYED = ("norm", "bias", "pos_embed", "scaler")


@lru_cache(maxsize=64)
def prototype(spec: Spec, drop_path: float = 0.0, compiled: bool = False) -> VisionTransformer:
    """Build the spec's timm model on the meta device, to be called with generated parameters.

    The cache is outside the modules that use it, so that neither their state dicts nor their copies contain the model.
    """
    with torch.device("meta"):
        model = build(spec)
    set_drop_path(model, drop_path)
    if compiled:
        compile_layers(model)
    return model


def attribute_of(gene: str) -> str:
    """Return the name of the attribute that holds a gene; names of parameters cannot contain dots."""
    return gene.replace(".", "__")


def gene_of(attribute: str) -> str:
    """Return the name of the gene that an attribute holds."""
    return attribute.replace("__", ".")


class GeneratedVisionTransformer(nn.Module):
    """timm's model of `spec` on generated parameters: images `[B, 3, image, image]` to logits `[B, classes]`.

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
        self.spec, self.generate, self.drop_path, self.compiled = spec, generate, drop_path, False
        for name, tensor in genes.items():
            self.register_parameter(attribute_of(name), nn.Parameter(tensor.clone()))
        for name, tensor in (frozen or {}).items():
            self.register_buffer(attribute_of(name), tensor.clone())

    def genes(self) -> State:
        """Return trained and frozen genes by name."""
        return {gene_of(name): tensor for name, tensor in [*self.named_parameters(), *self.named_buffers()]}

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, for timm's optimizer factory."""
        return {name for name, _ in self.named_parameters() if any(part in name for part in _NOT_DECAYED)}

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the layers of all models generated from now on; their sizes may differ."""
        self.compiled = True

    def forward(self, images: Tensor, read: Read | None = None) -> Any:
        return self.forward_as(self.spec, images, read)

    def forward_as(self, spec: Spec, images: Tensor, read: Read | None = None) -> Any:
        """Return the logits `[B, classes]` of the generated model of another spec, or what `read` reads of it."""
        model: nn.Module = prototype(spec, self.drop_path, self.compiled)
        model.train(self.training)
        device = images.device.type
        # under autocast, matrix products would round norms and biases to its precision
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            state = self.generate(self.genes(), spec)
        if read is not None:
            model, state = Reading(model, read), {f"model.{name}": tensor for name, tensor in state.items()}
        return functional_call(model, state, (images,), strict=True)

    @torch.no_grad()
    def materialise(self) -> VisionTransformer:
        """Build the plain timm model that computes the same function, on the CPU."""
        model = build(self.spec, seed=0)
        model.load_state_dict(self.generate(self.genes(), self.spec))
        return model


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

    def auxiliary(self, spec: Spec, *, drop_path: float = 0.0) -> nn.Module:
        return GeneratedVisionTransformer(spec, self.initial(spec), Generator(self, spec), drop_path=drop_path)

    def extract(self, auxiliary: nn.Module) -> Learngene:
        if not isinstance(auxiliary, GeneratedVisionTransformer):
            raise UserError(f"method {self.name!r} needs its own auxiliary model: use `learngene distill`")
        genes = {name: tensor.detach().cpu().clone() for name, tensor in auxiliary.genes().items()}
        return Learngene(self.name, self.model_dump(mode="json"), auxiliary.spec, genes)

    @torch.no_grad()
    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> VisionTransformer:
        made = self.as_made(learngene)
        assert learngene is not None
        return build_with(spec, made.generate(learngene.tensors, learngene.spec, spec), seed=seed)


class Generator:
    """A method's `generate` with a fixed `source`. Unlike a closure it can be pickled."""

    def __init__(self, method: GeneratingMethod, source: Spec) -> None:
        self.method, self.source = method, source

    def __call__(self, genes: Genes, spec: Spec) -> State:
        return self.method.generate(genes, self.source, spec)
