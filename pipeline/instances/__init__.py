"""Boxes to instances: pixels inside a box that change together under style mixing."""
