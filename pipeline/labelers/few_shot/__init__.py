"""Classes from a few annotated images: what they teach, and how samples are labeled with it."""
