"""LEARNS: fewer distinct weights."""
