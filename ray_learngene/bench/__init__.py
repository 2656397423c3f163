"""The benchmark of methods: one ancestry, one data set, one recipe; every method, several sizes and seeds."""
