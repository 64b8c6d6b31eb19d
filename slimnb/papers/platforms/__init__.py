"""Multi-platform AOWS: which widths for which market (chapter 03)."""
