"""The backbones and what they share, as short sentences in the alphabet of `slimnb.nn`."""
