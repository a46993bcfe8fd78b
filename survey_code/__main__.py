"""``python -m survey_code``: the command line."""

import sys

from survey_code.cli import main

sys.exit(main())
