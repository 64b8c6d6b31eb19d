"""The backbones, one file each, as short sentences in the alphabet of `slimnb.nn`."""
