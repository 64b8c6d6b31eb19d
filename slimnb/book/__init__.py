"""What a notebook needs besides the library: parameters, execution, claims, the look of figures."""
