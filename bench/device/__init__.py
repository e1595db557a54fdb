"""Evidence from a GPU: `tools/device_suite.sh` runs what is here, each part a process of its own.

An operator joins with one file in `operators/` that names `CASES`, `TINY` and `SMALL`: registry.py
says what they are.
"""
