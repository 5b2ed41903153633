"""Weights and runs from elsewhere and to elsewhere."""
