"""DS-Net: which width for which image (chapter 06)."""
