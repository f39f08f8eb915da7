"""Labels from outside: sets of generated images that people annotate."""
