"""WHICH PICTURE A LOSS LOOKS AT: the kinds of spoiled picture."""
