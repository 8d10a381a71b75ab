"""What can go wrong in a stage; the error's type is its policy.

Room: trainer. Pure; touches nothing.

    StageError                 exit code, reason, one sentence with the fix in it
    +-- UserError          64  the settings cannot work
    |   +-- Missing        64  something named by the spec is not there (reason says what); goes on once it is
    |   +-- UploadRefused  64  a hub or a registry does not let us write
    +-- DataError          65  the data cannot be used
    |   +-- DigestMismatch 65  what is in storage is not what its digest says
    |   +-- ExportDiffers  65  an exported model is another one than it was made from
    +-- TryAgain           75  something outside failed: storage, network, disk
    +-- OutOfMemory       137  an allocation failed; retried once, smaller
    Preempted             143  SIGTERM; a BaseException, so that no handler of ordinary errors swallows it
"""

from ratchet_api.reasons import Reason
from ratchet_api.stage import ExitCode


class StageError(Exception):
    """Base of the errors that a stage reports in words. Anything else that is raised is a bug (exit code 70)."""

    exit_code = ExitCode.BUG
    reason = Reason.INTERNAL_ERROR


class UserError(StageError):
    """The settings cannot work; the text says which one and what to write instead."""

    exit_code = ExitCode.USER_ERROR
    reason = Reason.USER_ERROR


class Missing(UserError):
    """Something that the spec names is not there; the reason says what kind of thing, the text how to mend it."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class DataError(StageError):
    """The data cannot be used; the text says why."""

    exit_code = ExitCode.DATA_ERROR
    reason = Reason.DATA_ERROR


class DigestMismatch(DataError):
    """A file or a manifest is not what its digest says: refused before it is loaded."""

    reason = Reason.DIGEST_MISMATCH


class ExportDiffers(DataError):
    """An exported model, loaded again, does not say what it was made from says."""

    reason = Reason.EXPORT_DIFFERS


class UploadRefused(UserError):
    """A hub or a registry does not let us write."""

    reason = Reason.UPLOAD_REFUSED


class TryAgain(StageError):
    """Something outside failed and may work later."""

    exit_code = ExitCode.TRY_AGAIN
    reason = Reason.INFRASTRUCTURE_ERROR


class OutOfMemory(StageError):
    """An allocation failed, in main memory or on the GPU."""

    exit_code = ExitCode.KILLED
    reason = Reason.OUT_OF_MEMORY


class Preempted(BaseException):
    """SIGTERM came: leave at once. The work is started again elsewhere."""

    exit_code = ExitCode.PREEMPTED
    reason = Reason.PREEMPTED
