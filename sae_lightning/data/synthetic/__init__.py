"""Data whose concepts are known: Gaussians, as in the paper."""
