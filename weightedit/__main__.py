"""`python -m weightedit`: the command `weightedit`, where its script is on no path."""

import sys

from weightedit.cli.main import main

sys.exit(main())
