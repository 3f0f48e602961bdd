"""A zarr store on disk that counts what is read from it."""

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore


class CountingStore(WrapperStore[LocalStore]):
    """Hands reads on and counts their bytes.

    Attributes:
        bytes_read: So far, as they lie in the files.
    """

    def __init__(self, store: LocalStore) -> None:
        """Starts at zero."""
        super().__init__(store)
        self.bytes_read = 0

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As the store's own."""
        found = await super().get(key, prototype, byte_range)
        self.bytes_read += len(found) if found is not None else 0
        return found
