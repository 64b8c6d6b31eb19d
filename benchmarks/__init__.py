"""What slimnb costs, as ratios to the same work written plainly: `python -m benchmarks`."""
