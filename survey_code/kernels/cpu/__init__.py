"""READS FAST: NumPy arrays in, NumPy arrays out.  Imports nothing of this package.

Rows are read and pooled in chunks that stay in a processor's second-level cache, with
as few passes over a chunk as NumPy allows.
"""
