"""A segmentation network that a user has, as a labeling method."""
