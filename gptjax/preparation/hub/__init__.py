"""Data sets of the Hugging Face hub: what there is, streamed text, files."""
