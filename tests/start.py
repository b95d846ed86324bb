"""Start cao as its installed command does: imported, so that it is compiled once for all starts.

That `python3 cao.py` starts too is held where that is what is tested: in test_packaging, and in
test_schedule (from a bare shell, from cron, in the example for CI).
"""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
from cao import main  # noqa: E402 - it is beside us, not installed

sys.exit(main())
