"""Extract a learngene from a trained model as a Ray job:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.extract \
        --source store:ancestries/vit --method wave --name vit --store s3://bucket/store

The flags are those of `learngene extract`.
"""

from jobs.launch import launch

launch(__name__, __file__)
