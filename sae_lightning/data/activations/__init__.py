"""Activations of a model: read from it as training goes, or harvested into a cache."""
