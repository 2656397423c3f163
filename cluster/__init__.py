"""What a cluster needs: an image, `ray up` and KubeRay files, and a local cluster of several hosts (see README.md)."""
