"""One tree of errors that clients see, which `app.api.errors` renders as OpenAI's envelope; one that operators see."""

import math
from collections.abc import Mapping


class CannotDo(Exception):
    """A command of the operator's cannot do its work. The message says why, and what to do."""


class ApiError(Exception):
    """`type`, `code` and `param` are the words of OpenAI's error object; `headers` go with the answer."""

    status = 400
    type = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


class InvalidRequest(ApiError):
    """Also for illegal changes of state: clients retry a 409, never a 400."""


class Unauthenticated(ApiError):
    status = 401


class Forbidden(ApiError):
    status = 403


class NotFound(ApiError):
    status = 404


class TooLarge(ApiError):
    status = 413


class TooManyRequests(ApiError):
    """Waiting helps: says for how long in `Retry-After`."""

    status = 429
    type = "requests"

    def __init__(self, message: str, *, retry_after_seconds: float, headers: Mapping[str, str]) -> None:
        wait = {"Retry-After": str(max(1, math.ceil(retry_after_seconds))), "x-should-retry": "true"}
        super().__init__(message, code="rate_limit_exceeded", headers={**headers, **wait})


class LimitReached(ApiError):
    """Of things that end by themselves, though hardly soon: a client's own quick retries are for nothing."""

    status = 429
    type = "requests"

    def __init__(self, message: str, *, retry_after_seconds: float = 60) -> None:
        headers = {"Retry-After": str(max(1, math.ceil(retry_after_seconds))), "x-should-retry": "false"}
        super().__init__(message, code="rate_limit_exceeded", headers=headers)


class QuotaUsedUp(ApiError):
    """Only deleting something, the next month or the operator helps."""

    status = 403
    type = "insufficient_quota"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="insufficient_quota")


class Unavailable(ApiError):
    """The server cannot answer now and will again; says when in `Retry-After`, and that trying again makes sense."""

    status = 503
    type = "server_error"

    def __init__(self, message: str, *, retry_after_seconds: int = 2) -> None:
        super().__init__(
            message, code="unavailable", headers={"Retry-After": str(retry_after_seconds), "x-should-retry": "true"}
        )
