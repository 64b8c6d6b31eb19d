"""PSS-Net: which subnets deserve training (chapter 04)."""
