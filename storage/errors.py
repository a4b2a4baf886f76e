"""The one exception that means: what the user gave is wrong, and this is how to mend it."""


class UserError(ValueError):
    """A mistake in an argument or a file, told in one line: rule, value got, what to do.

    Scripts print it without a traceback and exit with status 2.
    """
