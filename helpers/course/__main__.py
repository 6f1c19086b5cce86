"""`python -m helpers.course` is `course`."""

import sys

from helpers.course.main import main

sys.exit(main())
