"""The one exception that means: what the user gave cannot be used."""


class InputError(ValueError):
    """Raised for input that cannot be used.

    The message is complete on its own: what is wrong, where it was found and what to do about it.
    Command lines print it as one line, without a traceback.
    """
