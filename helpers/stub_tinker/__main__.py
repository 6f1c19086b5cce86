"""`python -m helpers.stub_tinker`: start the stub Tinker backend, or say what the running one does."""

import argparse
import logging
import signal
import sys

from helpers.errors import CourseError
from helpers.stub_tinker import status
from helpers.stub_tinker.options import api_keys, parse_arguments, state_dir
from helpers.stub_tinker.starting import run


def main() -> int:
    options = parse_arguments()
    try:
        return show_status(options) if options.status else run(options)
    except CourseError as error:
        print(f"stub_tinker: {error}", file=sys.stderr)
        return 1


def show_status(options: argparse.Namespace) -> int:
    if options.url:
        url, keys = options.url.rstrip("/"), api_keys(options)
        print(status.text(status.fetch(url, keys[0] if keys else None), url))
    else:
        print(status.of_state_dir(state_dir(options)))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it was started as ignored
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    sys.exit(main())
