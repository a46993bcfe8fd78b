"""READS FAST: the same look-ups and bags, fused.  Pure functions over arrays."""
