"""A labeling method as somebody would add one: test_toy_method.py puts these two files into a copy of labelmill."""
