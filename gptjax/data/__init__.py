"""Text to tokens to batches: tokenizers, shards on disk, windows over them, the loader."""
