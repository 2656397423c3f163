"""Errors that a user can mend, and the words that their messages share."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake or a condition that the user can mend.

    The message is one line: what is wrong, where, and what to do instead. The command line prints it as it is and exits
    with `status`; it never becomes a traceback.
    """

    status = 2


class NothingWithin(UserError):
    """No model is within the limits."""

    status = 3


class Unreachable(UserError):
    """A cluster does not answer; a retry later may help."""

    status = 4


class TooLarge(UserError):
    """A model that cannot be built here, whatever its images are."""


class RunError(UserError):
    """An error that all ranks raise at the same step; restarting them would not help."""

    status = 5


class Diverged(RunError):
    """A loss or weights are not finite. The settings are at fault, most often the learning rate."""


class Interrupted(Exception):
    """No error: the work was asked to stop, and the store holds its artefacts and checkpoints."""

    def __init__(self, done: int, total: int, of: str = "step") -> None:
        super().__init__(done, total, of)
        self.done, self.total, self.of = done, total, of

    @property
    def has_checkpoint(self) -> bool:
        """Check whether a checkpoint holds the unfinished work."""
        return self.of in ("descendant", "distillation") or (self.of == "step" and self.done > 0)


class JobFailed(UserError):
    """A submitted job failed; the command ends with the job's exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def did_you_mean(word: str, known: Iterable[str], most: int = 1, likeness: float = 0.6) -> str:
    """Return the end of a message, "; did you mean X?", that names the known words nearest to an unknown one."""
    near = difflib.get_close_matches(word, list(known), n=most, cutoff=likeness)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def last_line(error: BaseException) -> str:
    """Return the last line of an error, which says what Ray's many lines of traces are about."""
    return str(error).strip().splitlines()[-1]


def reason_of(error: BaseException, longest: int = 300) -> str:
    """Return another package's error as the part of a line: its text without line breaks, else its type."""
    return " ".join(str(error).split())[:longest] or type(error).__name__
