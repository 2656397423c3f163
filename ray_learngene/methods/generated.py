"""A vision transformer whose parameters are a differentiable function of others: what most methods train.

A method that says how its genes *generate* the state dict of a plain timm model has everything else for free: the
auxiliary model runs timm's own forward pass on generated parameters, so a descendant computes exactly what was trained.
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
from ray_learngene.models.specs import Spec, build, set_drop_path

Genes = Mapping[str, Tensor]
State = dict[str, Tensor]

# Parts of the names of genes that are decayed as little as the 1-D parameters they become.
_NOT_DECAYED = ("norm", "bias", "pos_embed", "scaler")


@lru_cache(maxsize=64)
def prototype(spec: Spec, drop_path: float = 0.0, compiled: bool = False) -> VisionTransformer:
    """The spec's timm model without storage, to be called with generated parameters.

    Kept outside the modules that use it, so that neither their state dicts nor their copies hold it.
    """
    with torch.device("meta"):
        model = build(spec)
    set_drop_path(model, drop_path)
    if compiled:
        compile_layers(model)
    return model


def attribute_of(gene: str) -> str:
    """The attribute that holds a gene: modules do not allow dots."""
    return gene.replace(".", "__")


def gene_of(attribute: str) -> str:
    """The gene that an attribute holds."""
    return attribute.replace("__", ".")


class GeneratedVisionTransformer(nn.Module):
    """Images `[B, 3, image, image]` to logits `[B, classes]`, by timm's model of `spec` on generated parameters.

    Genes are parameters of this module itself and not of a child, because ZeRO-3 gathers them when the module that
    owns them is called.

    Args:
        genes: Initial values of what is trained.
        generate: Genes and a spec to the state dict of the spec's timm model, differentiably. It is pickled with the
            module.
        drop_path: Stochastic depth of the last layer, linear in depth.
        frozen: Tensors that `generate` needs among the genes and that are not trained.
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
        """Trained and frozen genes by name."""
        return {gene_of(name): tensor for name, tensor in [*self.named_parameters(), *self.named_buffers()]}

    def no_weight_decay(self) -> set[str]:
        """Names, as timm's optimizer factory asks for them."""
        return {name for name, _ in self.named_parameters() if any(part in name for part in _NOT_DECAYED)}

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Run compiled from now on: the layers of the generated models, each of which may be another size."""
        self.compiled = True

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_as(self.spec, images)

    def forward_as(self, spec: Spec, images: Tensor) -> Tensor:
        """The logits of the model of another spec."""
        model = prototype(spec, self.drop_path, self.compiled)
        model.train(self.training)
        device = images.device.type
        # else matrix products would round norms and biases to the precision of autocast
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            state = self.generate(self.genes(), spec)
        return functional_call(model, state, (images,), strict=True)

    @torch.no_grad()
    def materialise(self) -> VisionTransformer:
        """The plain timm model that computes what this one does, on the CPU."""
        model = build(self.spec, seed=0)
        model.load_state_dict(self.generate(self.genes(), self.spec))
        return model


class GeneratingMethod(Method):
    """A method whose genes generate the parameters of every model it can become."""

    @abstractmethod
    def initial(self, spec: Spec) -> State:
        """Genes of an untrained auxiliary model, drawn from torch's global generator."""

    @abstractmethod
    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        """The state dict of the timm model of `spec`, from genes that were trained at `source`.

        Where the genes hold no head for the spec's classes, the state has none.

        Raises:
            UserError: the genes cannot become a model of that spec.
        """

    def auxiliary(self, spec: Spec, *, drop_path: float = 0.0) -> nn.Module:
        return GeneratedVisionTransformer(spec, self.initial(spec), Generator(self, spec), drop_path=drop_path)

    def extract(self, auxiliary: nn.Module) -> Learngene:
        if not isinstance(auxiliary, GeneratedVisionTransformer):
            raise UserError(f"method {self.name!r} needs an auxiliary model of its own: use `learngene distill`")
        genes = {name: tensor.detach().cpu().clone() for name, tensor in auxiliary.genes().items()}
        return Learngene(self.name, self.model_dump(mode="json"), auxiliary.spec, genes)

    @torch.no_grad()
    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> VisionTransformer:
        made = self.as_made(learngene)
        assert learngene is not None
        model = build(spec, seed=seed)
        model.load_state_dict({**model.state_dict(), **made.generate(learngene.tensors, learngene.spec, spec)})
        return model


class Generator:
    """A method's `generate` at the spec its genes were trained at; unlike a closure, it can be pickled."""

    def __init__(self, method: GeneratingMethod, source: Spec) -> None:
        self.method, self.source = method, source

    def __call__(self, genes: Genes, spec: Spec) -> State:
        return self.method.generate(genes, self.source, spec)
