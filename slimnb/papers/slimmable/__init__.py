"""S-Net and US-Net, the baselines that all five papers share (chapter 01)."""
