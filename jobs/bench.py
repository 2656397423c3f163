"""Compare methods under one recipe as a Ray job:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.bench \
        --config jobs/recipes/digits-bench.yaml --store s3://bucket/store

The flags are those of `learngene bench`. The table is kept in the store; the page and the plots are written to `--out`,
and can be made anew from the store by the same command on any machine.
"""

import sys

from ray_learngene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
