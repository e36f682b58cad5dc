"""Benchmark suites: the kind `benchmarks`."""
