"""Metrics, scores on a dataset, linear probes, online teachers."""
