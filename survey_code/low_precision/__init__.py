"""LEARNS: fewer bits per weight."""
