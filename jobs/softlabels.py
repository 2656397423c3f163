"""Compute and cache soft labels as a Ray job, before training:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.softlabels \
        --config jobs/recipes/digits-distill.yaml --store s3://bucket/store --workers 8

The flags are those of `learngene softlabels`.
"""

from jobs.launch import launch

launch(__name__, __file__)
