"""The needs and costs of a run, by arithmetic: only `compiled` imports jax."""
