"""`python -m plait.worker`."""

import sys

from plait.worker.process import main

sys.exit(main())
