"""What knows no pair, no model, no picture and no recipe: a file here could be in any other project."""
