"""A model's logits to text."""
