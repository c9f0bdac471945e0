"""Images as training data of a vision model, and the loading of trained vision models."""
