"""GOES OUT: layouts behind torch's modules and operators, and in other programs."""
