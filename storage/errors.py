"""The exception for wrong user input; its message says what is wrong and what to do."""


class UserError(ValueError):
    """A mistake in an argument or a file.

    The message states the rule, the value and what to do, in one line. Scripts print it
    without a traceback and exit with status 2.
    """


def one_line(error: Exception) -> str:
    """The first 200 characters of another library's error message, on one line."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= 200 else f"{message[:197]}..."
