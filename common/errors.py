"""Every error that a user, a disk or another process can cause, with the exit code of the command line.

    NestcoderError
    ├── UsageError      2   settings or arguments that cannot work
    ├── DamagedError    3   stored bytes are not what was written
    ├── InUseError      4   another process uses it
    ├── DiskError       5   the disk or the network refused
    ├── MismatchError   6   it belongs to other settings, another model or another cache
    ├── CapacityError   7   it will not fit
    └── NumericalError  8   NaN, infinity, or a proof that fails

Bugs of nestcoder itself are assertions, never one of these.
"""


class NestcoderError(Exception):
    """An error with a message: what is wrong, where, and what to do; shown as three lines, without a traceback."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = "", remedy: str = "") -> None:
        self.what = what
        self.where = str(where)
        self.remedy = remedy
        super().__init__("\n".join(line for line in (self.what, self.where, self.remedy) if line))


class UsageError(NestcoderError):
    """Settings or arguments that cannot work."""

    exit_code = 2


class DamagedError(NestcoderError):
    """Stored bytes are not what was written."""

    exit_code = 3


class InUseError(NestcoderError):
    """Another process uses it."""

    exit_code = 4


class DiskError(NestcoderError):
    """The disk or the network refused."""

    exit_code = 5


class MismatchError(NestcoderError):
    """It belongs to other settings, another model or another cache."""

    exit_code = 6


class CapacityError(NestcoderError):
    """It will not fit on the disk or in memory."""

    exit_code = 7


class NumericalError(NestcoderError):
    """NaN, infinity, or a numeric proof that fails."""

    exit_code = 8
