"""READS FAST: NumPy arrays in, NumPy arrays out.

By compiled code (`reader`), where there is a compiler; else by NumPy: rows are read and
pooled in chunks that stay in a processor's second-level cache, with as few passes over
a chunk as NumPy allows.
"""
