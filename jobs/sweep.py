"""Train descendants of many sizes as a Ray job:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.sweep \
        --config jobs/recipes/sws-s-sweep.yaml --data s3://bucket/imagenet --learngene s --name s --store s3://bucket/store

The flags are those of `learngene sweep`.
"""

from jobs.launch import launch

launch(__name__, __file__)
