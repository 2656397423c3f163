"""Pull the best descendant within limits as a Ray job, to a persistent folder of the job's node:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.pull \
        --store s3://bucket/store --max-params 12M --out /models/best

The flags are those of `learngene pull`.
"""

from jobs.launch import launch

launch(__name__, __file__)
