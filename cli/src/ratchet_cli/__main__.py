"""`python -m ratchet_cli` is the `ratchet` command.

Room: cli.
"""

import sys

from ratchet_cli.main import main

sys.exit(main())
