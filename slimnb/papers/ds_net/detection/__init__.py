"""DS-Net as the backbone of a detector (Table 4)."""
