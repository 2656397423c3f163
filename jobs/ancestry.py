"""Train an ancestry model as a Ray job:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.ancestry \
        --config jobs/recipes/digits-ancestry.yaml --store s3://bucket/store

The flags are those of `learngene ancestry`.
"""

import sys

from ray_learngene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["ancestry", *sys.argv[1:]]))
