"""Ray: sessions, jobs and preemption."""

import ray_learngene.cluster.shared_tensors  # before the first import of Ray
