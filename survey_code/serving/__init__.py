"""GOES OUT: tables larger than memory, and tables in the formats of others."""
