"""Which images people annotate: the part of annotating that asks features and labelers."""
