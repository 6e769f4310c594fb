"""The one error that a user's input may raise."""


class InputError(ValueError):
    """Bad input. The message is one line: what was got, what was expected, what to do.

    Programs print it without a traceback and exit with code 2; libraries may catch it as ValueError.
    """
