"""`python -m ratchet_trainer`."""

import sys

from ratchet_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
