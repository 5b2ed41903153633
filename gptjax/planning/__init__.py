"""What a run would need and cost, by arithmetic: nothing here imports jax but `compiled`."""
