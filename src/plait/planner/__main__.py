"""`python -m plait.planner`."""

import sys

from plait.planner.errand import main

sys.exit(main())
