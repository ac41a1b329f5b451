"""WHAT A STEP COMPUTES: the kinds of stage."""
