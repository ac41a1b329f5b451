"""Pairs and losses -> an adapter, stage by stage; `plan/` predicts what that takes.

From the recipe to the loss: loop.py, stage.py, step.py, stages/preference.py, losses/<name>.py.
"""
