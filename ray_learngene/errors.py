"""The one exception type for what a user can mend."""


class UserError(Exception):
    """A mistake or a condition that the user can mend.

    The message is one line: what is wrong, where, and what to do instead. The command line prints it as it is and exits
    with status 2; it never becomes a traceback.
    """


class RunError(UserError):
    """A user's error that all workers of a run raise at the same step; starting the workers again would not help."""
