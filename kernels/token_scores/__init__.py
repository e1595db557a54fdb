"""How much a chunk of queries wants each cached token."""
