"""One step, and many."""
