"""`python -m sae_lightning` is the command `sae-lightning`."""

import sys

from sae_lightning.cli import main

if __name__ == "__main__":
    sys.argv[0] = "sae-lightning"  # the name that the help shows
    main()
