"""Labels as other tools write them: one module per format, each with that tool's own way from shapes to pixels."""
