"""The error that every wrong setting raises."""


class ConfigError(ValueError):
    """A setting that does not exist or has a wrong value; the message names it."""
