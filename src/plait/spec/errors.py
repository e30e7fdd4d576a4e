"""One exception tree. `status` is the HTTP status that a server answers with.

PlaitError
  UserError            400   what was asked cannot be done; the message names the next step
    NotFound           404   no such model, adapter or route
    TooLong            400   the prompt (and its output) do not fit the model or the pool
  ServiceError         500   ours
    Overloaded         503   the queue is full, or the server drains: try again later
    DeadlineExceeded   504   the caller's own deadline passed
    EngineFailure      500   a worker died and the request could not be saved
  Unsupported          400   the seam cannot carry this model or option, with the reason
"""


class PlaitError(Exception):
    """Base of all errors that Plait raises on purpose."""

    status = 500


class UserError(PlaitError):
    """The caller asked for something that cannot be done; says what to do instead."""

    status = 400

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NotFound(UserError):
    """There is no such model, adapter or file."""

    status = 404


class TooLong(UserError):
    """The prompt with its output does not fit the model's context or any instance's KV pool."""


class Unsupported(UserError):
    """A model or option that the engine cannot carry; names the reason."""


class ServiceError(PlaitError):
    """The service could not do what it accepted."""


class Overloaded(ServiceError):
    """The queue is full or the server drains; the caller may try again."""

    status = 503


class DeadlineExceeded(ServiceError):
    """The request's own deadline passed before it finished."""

    status = 504


class EngineFailure(ServiceError):
    """Workers died and the request could not be saved."""
