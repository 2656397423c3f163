"""Distil an ancestry model into a learngene as a Ray job:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.distill \
        --config jobs/recipes/sws-s.yaml --data s3://bucket/imagenet --name s --store s3://bucket/store --workers 8

The flags are those of `learngene distill`.
"""

from jobs.launch import launch

launch(__name__, __file__)
