"""Slimmable layers, norms, blocks and gates: what nets are written in."""
