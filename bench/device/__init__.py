"""Evidence from a GPU: `tools/device_suite.sh` runs what is here, each part a process of its own.

An operator joins with one file in `bench/operators/`: bench/registry.py says what it names.
"""
