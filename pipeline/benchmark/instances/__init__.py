"""Whether instances are masks of things, and no better than their boxes."""
