"""Everything that can go wrong with a request, as OpenAI-style error objects.

Room: gateway. Pure; touches nothing.

    GatewayError
    ├── BadRequest (400)      the request cannot be understood; the sentence says what to write
    ├── TooSlow (408)         the body does not come
    ├── TooLarge (413)        the body is over the limit
    ├── UnknownModel (404)    no such cycle or version
    ├── UnknownAnswer (404)   feedback on an answer that cannot be placed
    ├── NoRoute (404)         no such path or method
    ├── ArmUnavailable (503)  no pod of the arm is ready or reachable
    ├── ArmFailed (502)       the arm's answer is broken, or it refused what the gateway asked for
    ├── ArmTimeout (504)      the arm was silent, or took too long
    └── NotRecorded (503)     feedback that could not be written to the spool
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import orjson


class GatewayError(Exception):
    """A request that ends in an error object. `message` is one sentence for a person."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers: dict[str, str] = dict(headers or {})

    def body(self) -> bytes:
        """JSON of the error object."""
        return error_body(self.message, self.type, self.param, self.code)


class BadRequest(GatewayError):
    status = 400
    type = "invalid_request_error"


class TooSlow(GatewayError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class TooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class UnknownModel(GatewayError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model")


class UnknownAnswer(GatewayError):
    status = 404
    type = "invalid_request_error"
    code = "response_not_found"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="response_id")


class NoRoute(GatewayError):
    status = 404
    type = "invalid_request_error"
    code = "unknown_url"


class ArmUnavailable(GatewayError):
    status = 503
    type = "server_error"
    code = "no_ready_pod"

    def __init__(self, message: str, retry_after: int = 2) -> None:
        super().__init__(message, headers={"retry-after": str(retry_after)})


class ArmFailed(GatewayError):
    status = 502
    type = "server_error"
    code = "bad_upstream_answer"


class ArmTimeout(GatewayError):
    status = 504
    type = "server_error"
    code = "upstream_timeout"


class NotRecorded(GatewayError):
    status = 503
    type = "server_error"
    code = "not_recorded"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"retry-after": "30"})


def error_object(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The error object as OpenAI's API has it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    """JSON of an error object."""
    return orjson.dumps(error_object(message, kind, param, code))
