"""The one exception that is meant for the user."""


class DynamoError(Exception):
    """A mistake that the user can mend. The text says what, where, and what to do.

    The command line prints it as one line and exits with code 2.
    """
