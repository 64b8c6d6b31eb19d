"""One folder per paper: its method, recipes, tables, figures and claims."""
