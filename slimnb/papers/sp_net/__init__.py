"""SP-Net: which channels a small subnet keeps (chapter 02)."""
