"""Tests of sae_lightning.plotting."""
