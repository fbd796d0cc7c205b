"""What is wrong with a request, in the API's own form."""

from typing import Any


class RequestError(Exception):
    """A request that is not answered; the message is one sentence for the client."""

    def __init__(self, message: str, status: int = 400, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param

    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        param = None if self.param is None else _sendable(self.param)
        return {"error": {"message": _sendable(self.message), "type": kind, "param": param, "code": self.code}}


def _sendable(text: str) -> str:
    """Halves of surrogate pairs, which a client's own words may hold, written out."""
    return text.encode(errors="backslashreplace").decode()
