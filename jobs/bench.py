"""Compare methods under one recipe as a Ray job:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.bench \
        --config jobs/recipes/digits-bench.yaml --store s3://bucket/store

The flags are those of `learngene bench`. The table is kept in the store; the page and the plots are written to `--out`,
and can be made anew from the store by the same command on any machine.
"""

from jobs.launch import launch

launch(__name__, __file__)
