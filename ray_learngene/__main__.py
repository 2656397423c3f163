"""`python -m ray_learngene` is the `learngene` command."""

import sys

from ray_learngene.cli.main import main


def run() -> None:
    """Entry point of the `learngene` script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
