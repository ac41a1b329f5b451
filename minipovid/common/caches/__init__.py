"""Stores on disk that are bounded, shared by processes and never trusted."""
