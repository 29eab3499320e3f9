"""Benchmarks that print a ceiling beside every number and end with one JSON line."""
