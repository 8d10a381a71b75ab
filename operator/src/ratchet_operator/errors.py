"""What can go wrong, and what is done about it: the type of an error is its policy.

Room: operator. Pure; imported by clients and reconcile.

    OperatorError
    ├── Waiting            nothing is wrong; look again after `delay`
    ├── Stalling           a person, or what is missing, has to come: condition Stalled, slow retry
    │   └── InvalidObject  an object of ours cannot be read as its type
    ├── Forbidden          the operator's own rights are not enough: logged, slow retry
    └── Transient          tried again with exponential back-off
        ├── Conflict       somebody wrote in between: read again at once
        ├── Unavailable    the API server, Prometheus or a gateway did not answer in time
        └── NotLeading     another operator leads now: nothing more is written

Anything else that is raised in a reconcile is a bug: logged with its traceback, counted, and tried again with the
longest back-off's patience, for a bug in one object must not take the others down.
"""

from ratchet_api.base import ObjectMeta
from ratchet_api.reasons import Reason


class OperatorError(Exception):
    """Base of everything that the operator raises on purpose."""


class Waiting(OperatorError):
    """Nothing is wrong; the same object is looked at again after `delay` seconds."""

    def __init__(self, message: str, delay: float) -> None:
        super().__init__(message)
        self.delay = delay


class Stalling(OperatorError):
    """A person has to act: `reason` and `message` become the Stalled condition."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class InvalidObject(Stalling):
    """An ImprovementCycle or ModelVersion whose spec or status cannot be read; `meta` still can."""

    def __init__(self, message: str, meta: ObjectMeta, conditions: list[dict[str, object]]) -> None:
        super().__init__(Reason.INVALID_SPEC, message)
        self.meta = meta
        self.conditions = conditions


class Forbidden(OperatorError):
    """The API server answered 403: a rule is missing in the operator's Role."""


class Transient(OperatorError):
    """Tried again with back-off."""


class Conflict(Transient):
    """The object was changed in between (409)."""


class Unavailable(Transient):
    """No answer, or a 5xx one."""


class NotLeading(Transient):
    """This process does not hold the lease: it must not write."""
