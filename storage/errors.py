"""The one exception that means: what the user gave is wrong, and how to mend it."""


class UserError(ValueError):
    """A mistake in an argument or a file: rule, value got and what to do in one line.

    Scripts print it without a traceback and exit with status 2.
    """
