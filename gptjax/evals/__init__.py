"""Measures of a trained model: each takes parameters and gives numbers."""
