"""Synthetic data with known concepts: the paper's Gaussians."""
