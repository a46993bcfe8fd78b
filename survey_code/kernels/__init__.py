"""READS FAST: the look-ups and bags of `survey_code.layouts`, fused.  Pure functions."""
