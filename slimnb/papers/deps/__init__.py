"""DepS: when to start shrinking (chapter 05)."""
