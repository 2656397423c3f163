"""A cluster of several hosts on one Linux machine, for development and tests.

    python -m cluster.local up --hosts 2      a head, two workers and an S3 server, each a host of its own
    eval "$(python -m cluster.local env)"     what `learngene submit` needs to reach them
    python -m cluster.local off worker-1      power off: cable out, processes gone; `on` boots it again
    python -m cluster.local down              everything is removed

A host is a set of Linux namespaces: an address and a network card on a common bridge, a host name, processes and shared
memory of its own, and one folder it can write to. The rest of the disk is read-only to it, as an image is. What runs on
it is a plain `ray start`, with token authentication.
"""

from cluster.local.cluster import LocalCluster

__all__ = ["LocalCluster"]
