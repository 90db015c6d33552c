"""What goes wrong on purpose: every message names what, where, and what would be right."""


class MatuError(Exception):
    """Base of every error that matu raises about its input; shown to the user without a traceback."""


class ConfigError(MatuError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DivergedError(MatuError):
    """Numbers left their range; the same computation would end so again."""


class DataError(MatuError, ValueError):
    """A dataset, image, message or file that is missing, broken, or does not fit."""


class RangeError(DataError, DivergedError):
    """Numbers that are not finite, or beyond what their type or a message holds."""
