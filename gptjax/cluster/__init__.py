"""Devices, processes, and what goes wrong with them."""
