"""One file per paper; `slimmable` holds the baselines they all share."""
