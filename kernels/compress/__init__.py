"""Queries and keys of all heads as one short vector per token."""
