"""Ray: sessions, jobs and preemption."""

import ray_learngene.cluster.shared_tensors  # noqa: F401  (before the first import of Ray)
