"""Take a learngene from a trained model as a Ray job:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.extract \
        --source store:ancestries/vit --method wave --name vit --store s3://bucket/store

The flags are those of `learngene extract`.
"""

import sys

from ray_learngene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["extract", *sys.argv[1:]]))
