"""Images: as training data of a vision model, and what that then makes of them."""
