"""The errors that Expunge raises on purpose.

Every message says what is wrong, where the value came from and what to do about it, in one line.
The command line turns a `UserError` into that line and exit code 2; anything else is a bug (exit code 1).
"""

import errno


class UserError(Exception):
    """The input, a setting or the surroundings are at fault; the message is for the person who ran the command."""


class DataError(UserError):
    """A data file cannot be read as examples; the message names the file, the line and the reason."""


class ConfigError(UserError):
    """A setting is out of range, unknown, or contradicts another one; the message names the flag."""


class ModelError(UserError):
    """A model, tokenizer or adapter folder cannot be used."""


class RunError(UserError):
    """A run directory cannot be used: it exists already, is incomplete, or belongs to something else."""


class TrainingError(UserError):
    """Training cannot go on (a loss or gradient is not finite); the last good checkpoint is left in place."""


def outside_cause(error: Exception) -> str:
    """What is wrong around us where an error is not of our making: memory, disk or permissions; else nothing."""
    memory = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate" in str(error)
    if memory or isinstance(error, MemoryError):
        return "out of memory: take a smaller model, a lower --max-length, --gradient-checkpointing or a larger machine"
    if type(error).__name__ == "SafetensorError" and "(os error" in str(error):
        return f"cannot write weights ({str(error).strip().splitlines()[0]}): make room or look at the disk"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        place = f" at {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}: make room or look at the disk"
    if isinstance(error, PermissionError):
        return f"{error.strerror}{f' at {error.filename}' if error.filename else ''}: look at whose it is"
    return ""
