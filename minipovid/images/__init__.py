"""Pictures: found, decoded and brought to the shape that a vision tower takes."""
