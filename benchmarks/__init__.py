"""Benchmarks: named workloads, rivals through the same driver, ratios taken side by side in one run."""
