"""Compare methods under one recipe as a Ray job:

    ray job submit --runtime-env jobs/runtime_env.yaml -- python -m jobs.bench \
        --config jobs/recipes/digits-bench.yaml --store s3://bucket/store

The flags are those of `learngene bench`. The table goes to the store; the page and the plots go to `--out`. The same
command makes them again from the store on any machine.
"""

from jobs.launch import launch

launch(__name__, __file__)
