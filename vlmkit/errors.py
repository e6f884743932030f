"""The errors that a user can cause and put right."""


class UserError(ValueError):
    """Something the user can put right: commands print it as one line, without a traceback.

    Raise it where the cause is known; the message names the key, file or sample and the way out.
    """


class ConfigError(UserError):
    """A configuration that cannot work; the message starts with the full key."""


class DataError(UserError):
    """Data that cannot be used; the message names the source and the sample."""
