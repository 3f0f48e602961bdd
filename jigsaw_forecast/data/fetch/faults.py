"""Why a fetch failed, and whether another attempt may help."""


class FetchError(Exception):
    """A fetch failed for good; the message is for the user."""


class TransientError(FetchError):
    """A fetch failed in a way that may pass.

    Attributes:
        retry_after_s: What the server asks to wait, None where it does not say.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        """Keeps what the server said of the wait."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
