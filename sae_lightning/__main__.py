"""`python -m sae_lightning` is the command `sae-lightning`."""

from sae_lightning.cli import main

if __name__ == "__main__":
    main()
