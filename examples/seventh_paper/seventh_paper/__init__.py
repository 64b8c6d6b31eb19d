"""A template of a paper outside slimnb's repository: the half-sandwich, which trains wide subnets more often."""
