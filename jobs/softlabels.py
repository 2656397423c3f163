"""Compute soft labels beforehand as a Ray job:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.softlabels \
        --config jobs/recipes/digits-distill.yaml --store s3://bucket/store --workers 8

The flags are those of `learngene softlabels`.
"""

import sys

from ray_learngene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["softlabels", *sys.argv[1:]]))
