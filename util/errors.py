"""The one exception that a user is meant to see."""


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line: the culprit (key, file) and the way out.

    `util.run.main` prints it as `error: ...` on stderr and exits with status 2.
    """
