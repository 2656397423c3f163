"""Train descendants of many sizes as a Ray job:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.sweep \
        --config jobs/recipes/sws-s-sweep.yaml --data s3://bucket/imagenet --learngene s --name s --store s3://bucket/store

The flags are those of `learngene sweep`.
"""

import sys

from ray_learngene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
