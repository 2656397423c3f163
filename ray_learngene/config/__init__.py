"""One typed configuration per command.

A configuration is read from YAML (`--config recipe.yaml`) and overridden by flags. Every field is a flag of the same
name: `learngene distill --epochs 20`. It is validated before anything starts, and stored in every artefact.
"""

from ray_learngene.config.base import Config, load_config, read_recipe
from ray_learngene.config.compare import BenchArm, BenchConfig
from ray_learngene.config.data import AugmentationConfig, DataConfig
from ray_learngene.config.delivery import ExpandConfig, ExportConfig, LimitsConfig, MeasureConfig
from ray_learngene.config.distillation import AncestryConfig, DistillConfig, ExtractConfig, SoftLabelsConfig
from ray_learngene.config.store import (
    CheckConfig,
    ConvertConfig,
    EvaluateConfig,
    GcConfig,
    ListConfig,
    PageConfig,
    PullConfig,
    ShowConfig,
)
from ray_learngene.config.submit import SubmitConfig
from ray_learngene.config.sweep import PlanConfig, SelectionConfig, SiblingsConfig, SweepConfig
from ray_learngene.config.training import (
    ClusterConfig,
    DistillationConfig,
    OptimizationConfig,
    PublishConfig,
    SpeedConfig,
    StoreConfig,
    TrainingConfig,
    WorkersConfig,
)
