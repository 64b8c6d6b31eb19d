"""The one training loop, and what runs it: from a recipe to a stored result."""
