"""The network: pure functions of arrays, Linen layers over them, and the GPT they make."""
