"""`python -m qttdm`: the same as the `qttdm` command."""

import sys

from qttdm.deploy.cli.main import main

sys.exit(main())
