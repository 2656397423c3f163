"""A cluster of several hosts on one Linux machine, for development and tests.

    python -m cluster.local up --hosts 2      start a head, two workers and an S3 server, each on its own host
    eval "$(python -m cluster.local env)"     export what `learngene submit` needs to reach them
    python -m cluster.local off worker-1      power a host off: cut the network, kill the processes; `on` boots it again
    python -m cluster.local down              remove everything

A host is a set of Linux namespaces. It has its own address and network card on a common bridge, host name, processes,
shared memory, and one writable folder. The rest of the disk is read-only, like an image. A Ray host runs a plain `ray
start` with token authentication.
"""

from cluster.local.cluster import LocalCluster

__all__ = ["LocalCluster"]
