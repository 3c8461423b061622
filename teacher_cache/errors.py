"""What ends a command before its work is done: the user's to mend, or the user's wish."""


class UserError(ValueError):
    """Bad input, or a cache that cannot be used: one message naming the value, the bound and what to do.

    Command lines print it without a traceback and exit with status 2.
    """


class StoreError(UserError):
    """A store does not answer, or not to this user: nothing is known of what it holds."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with a message that says what is kept and how to go on."""
