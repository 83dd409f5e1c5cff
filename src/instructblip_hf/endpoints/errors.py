"""What goes wrong with an endpoint, by what is to be done about it."""

from __future__ import annotations


class EndpointError(Exception):
    """No further request can succeed: a wrong key, a model that does not exist, nothing but failures."""


class TransientError(Exception):
    """The same request may succeed later.

    Args:
        message (`str`): What happened.
        after (`float`, *optional*): Seconds to wait, where the server says so.
        is_limit (`bool`, *optional*, defaults to `False`): Whether the server wants fewer requests, from all.
        may_be_paid (`bool`, *optional*, defaults to `False`): Whether the server may have computed an answer.
    """

    def __init__(
        self, message: str, after: float | None = None, is_limit: bool = False, may_be_paid: bool = False
    ) -> None:
        super().__init__(message)
        self.after = after
        self.is_limit = is_limit
        self.may_be_paid = may_be_paid


class BudgetError(Exception):
    """Another request might cost more than is left."""


class StoppedError(Exception):
    """Asking was ended while this request waited for its turn."""


__all__ = ["BudgetError", "EndpointError", "StoppedError", "TransientError"]
