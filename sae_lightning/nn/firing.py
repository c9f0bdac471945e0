"""The one threshold that says whether a latent fires.

A latent *fires* on a sample when its code exceeds ``FIRING_THRESHOLD``. Losses, callbacks and metrics all import the
value from here, so that "active", "dead" and "L0" mean the same thing everywhere (Hindupur, Lubana, Fel and Ba 2025,
arXiv 2503.01822, use the same value).
"""

FIRING_THRESHOLD: float = 1e-6
