"""The one exception type for what a user can mend."""


class UserError(Exception):
    """A mistake or a condition that the user can mend.

    The message is one line: what is wrong, where, and what to do instead. The command line prints it as it is and exits
    with `status`; it never becomes a traceback.
    """

    status = 2


class NothingWithin(UserError):
    """No model is within the limits that were asked for."""

    status = 3


class Unreachable(UserError):
    """A cluster does not answer now; trying again later may help."""

    status = 4


class RunError(UserError):
    """A user's error that all workers of a run raise at the same step; starting the workers again would not help."""

    status = 5


class Diverged(RunError):
    """Training made a loss or weights that are not finite: its settings are at fault, most often the learning rate."""


class Interrupted(Exception):
    """Not an error: work was asked to stop, and what is done is in the store, as artefacts and as checkpoints."""

    def __init__(self, done: int, total: int, of: str = "steps") -> None:
        super().__init__(done, total, of)
        self.done, self.total, self.of = done, total, of

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint holds what was begun."""
        return self.of in ("descendants", "distillations") or (self.of == "steps" and self.done > 0)


class JobFailed(UserError):
    """A submitted job that did not succeed; the command ends with the job's own exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
