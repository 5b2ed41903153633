"""Data sets of the Hugging Face hub: their contents, streamed text, files."""
