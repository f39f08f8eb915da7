"""A promise about the quality of kept samples, calibrated on annotated images."""
