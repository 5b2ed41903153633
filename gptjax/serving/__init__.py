"""A model behind an HTTP API."""
