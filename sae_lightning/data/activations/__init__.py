"""Activations of a model: computed during training, or harvested into a cache."""
