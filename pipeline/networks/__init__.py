"""Segmentation networks: built, read, and run; nothing here trains."""
