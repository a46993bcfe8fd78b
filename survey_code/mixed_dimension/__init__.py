"""LEARNS: fewer weights per embedding."""
