"""Train an ancestry model as a Ray job:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.ancestry \
        --config jobs/recipes/digits-ancestry.yaml --store s3://bucket/store

The flags are those of `learngene ancestry`.
"""

from jobs.launch import launch

launch(__name__, __file__)
