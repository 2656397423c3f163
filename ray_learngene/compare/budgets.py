"""Equal budgets: the epochs that give an arm the total training FLOPs of another one."""

from __future__ import annotations

from ray_learngene.ancestry.model import Ancestry
from ray_learngene.compare.arms import ArmPlan, Distillation
from ray_learngene.compare.plan import plan_arms, sizes
from ray_learngene.compare.runs import tuning_epochs
from ray_learngene.config import BenchConfig
from ray_learngene.errors import UserError
from ray_learngene.methods.registry import create_method
from ray_learngene.models.costs import macs
from ray_learngene.training.flops import TRAINING_PASSES, forward_flops, training_flops


def with_equal_budgets(config: BenchConfig, ancestry: Ancestry, images: int) -> BenchConfig:
    """Give `equal` arms the epochs that cost as many FLOPs as the arm that `budget` names.

    All sizes together count, with the teacher's forward passes and tuning. Adapter fitting is not known beforehand and
    is left out; the page says how equal the budgets became.

    Args:
        images: Number of training images.

    Raises:
        UserError: an arm cannot have that budget, because its tuning alone costs more.
    """
    equal = [name for name, arm in config.arms.items() if arm.equal]
    if not equal:
        return config
    planned = {row.name: row for row in plan_arms(config, ancestry.classes)}
    seen = images // config.batch_size * config.batch_size  # in an epoch
    teacher = forward_flops(ancestry, sizes(config, ancestry.classes)[0].image)
    budget = sum(_costs(config, planned[str(config.budget)], seen, teacher))
    arms = dict(config.arms)
    for name in equal:
        fixed, varying = _costs(config, planned[name], seen, teacher)
        epochs = round((budget - fixed) / varying * config.epochs)
        if epochs < 1:
            raise UserError(f"arm {name!r}: its tuning alone costs more than all of {config.budget!r}: give it epochs")
        arms[name] = arms[name].model_copy(update={"epochs": epochs})
    return config.model_copy(update={"arms": arms})


def _costs(config: BenchConfig, row: ArmPlan, images: int, teacher: int) -> tuple[float, float]:
    """Return the FLOPs of an arm at all sizes: what does not depend on its epochs, and what is in proportion to them.

    Args:
        images: Of an epoch.
        teacher: FLOPs of one forward pass of the ancestry model on one image.
    """
    each = sum(2 * TRAINING_PASSES * macs(spec) + teacher * (row.arm.tune == "distilled") for spec in row.specs)
    tuning = float(each * images * tuning_epochs(config, row))
    if row.arm.tune == "full":
        return 0.0, tuning
    made = {one for spec in row.specs if (one := row.distillations[spec]) is not None}
    return tuning, float(sum(_distillation(config, one, images, teacher) for one in made))


def _distillation(config: BenchConfig, one: Distillation, images: int, teacher: int) -> int:
    module = create_method(one.method).auxiliary(one.spec)
    steps = one.epochs * images // config.batch_size
    own = training_flops(module, one.spec.image, batch=config.batch_size, steps=steps, seed=config.seed)
    return own + one.epochs * images * teacher
