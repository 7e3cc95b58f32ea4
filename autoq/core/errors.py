"""The error taxonomy.

Three families, because three places catch:

AutoqError
├── UserError              the caller can fix it; exit code 2
│   ├── SpecError          the spec or a flag is wrong, with the path of the key
│   ├── ModelError         the model file or torch factory is wrong
│   ├── DataError          arrays do not fit the model, or are broken
│   ├── UnknownNameError   a name that nothing is registered under
│   └── StoreError         the store cannot be reached, or holds something else
├── TrialError             one candidate failed; recorded, the search goes on
│   ├── RuntimeRejectedModel
│   ├── TrialTimeout
│   ├── TrialOutOfMemory
│   ├── TrialCrashed
│   └── UnfaithfulModel    the runtime changed what the model computes
└── InfrastructureError    may pass when tried again
    ├── TargetUnavailable
    └── StoreUnavailable

Anything else that is raised is a bug of autoq and keeps its traceback.
"""

from __future__ import annotations

import errno

# The disk is full, over quota, read-only or broken: the user's to mend, and then the search goes on.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


class AutoqError(Exception):
    """Base of every error autoq raises on purpose.

    `message` is the only required argument: errors cross process borders by pickle.
    """

    def __init__(self, message: str, *, hint: str = "", **context: object) -> None:
        super().__init__(message)
        self.hint = hint
        self.context = context

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.hint})" if self.hint else str(self.args[0])


class UserError(AutoqError):
    """The caller can fix it: the message says what was given, what was expected, and where."""


class SpecError(UserError):
    """The spec or a flag is wrong."""


class ModelError(UserError):
    """The model cannot be read, or has nothing autoq can compress."""


class DataError(UserError):
    """The data do not fit the model, or are broken."""


class UnknownNameError(UserError):
    """A name that nothing is registered under."""


class StoreError(UserError):
    """The store cannot be reached at the start, or the name in it belongs to something else."""


class TrialError(AutoqError):
    """One candidate failed; it is recorded with this reason and the search goes on."""


class RuntimeRejectedModel(TrialError):
    """The runtime refused the model; trying again cannot help."""


class OutputsNotFinite(TrialError):
    """The candidate's outputs have NaN or infinite values; trying again cannot help."""


class TrialTimeout(TrialError):
    """The trial ran past its time limit."""


class TrialOutOfMemory(TrialError):
    """The trial's resident memory passed its limit."""


class TrialCrashed(TrialError):
    """The process of the trial died."""


class UnfaithfulModel(TrialError):
    """The optimised graph computes something else than the graph that was written."""


class InfrastructureError(AutoqError):
    """Something outside the search is away; trying again may help."""


class TargetUnavailable(InfrastructureError):
    """The device cannot be reached."""


class StoreUnavailable(InfrastructureError):
    """The store went away in mid-search."""
