"""Pairs and losses -> an adapter, stage by stage."""
