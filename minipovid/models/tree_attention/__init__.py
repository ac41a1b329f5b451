"""One prefix and many answers in one sequence: layout, mask, positions and layers."""
