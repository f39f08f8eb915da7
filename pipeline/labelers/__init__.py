"""From images to labels: methods.py lists the labeling methods, base.py says what one is."""
