"""Nets are written in these: slimmable layers, norms, blocks and gates."""
