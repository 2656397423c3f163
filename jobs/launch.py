"""What every job of this folder starts: the command of the same name, with the flags that were given."""

import sys
from pathlib import Path

from ray_learngene.cli.main import main


def launch(name: str, file: str) -> None:
    """Run the command that a job's file is named after, where that file is the program."""
    if name == "__main__":
        sys.exit(main([Path(file).stem, *sys.argv[1:]]))
