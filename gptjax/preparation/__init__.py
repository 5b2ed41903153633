"""Any text to token shards."""
