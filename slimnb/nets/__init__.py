"""The papers' backbones, one file each, as short sentences in the alphabet of `slimnb.layers`."""
