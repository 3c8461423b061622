"""The one error that is the user's to mend."""


class UserError(ValueError):
    """Bad input, or a cache that cannot be used: one message naming the value, the bound and what to do.

    Command lines print it without a traceback and exit with status 2.
    """
