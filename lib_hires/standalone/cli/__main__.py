"""`python -m lib_hires.standalone.cli`: the command `hires`."""

import sys

from lib_hires.standalone.cli import main

sys.exit(main())
