"""`Transfers` counts the weights that travelled to where samples are drawn: how often, how many bytes, how long."""


class Transfers:
    """`Transfers` adds up transfers of weights.

    Attributes:
        number, bytes, seconds: of all so far.
    """

    def __init__(self) -> None:
        self.number, self.bytes, self.seconds = 0, 0, 0.0
        self._logged = (0, 0, 0.0)

    def add(self, size: int, seconds: float) -> None:
        """Count a transfer of so many bytes that took so many seconds."""
        self.number, self.bytes, self.seconds = self.number + 1, self.bytes + size, self.seconds + seconds

    def totals(self) -> dict[str, float]:
        """Return number, bytes and seconds of all transfers, as `summary.json` names them."""
        return {
            "weight_transfers": self.number,
            "weight_bytes": self.bytes,
            "seconds/weights": self.seconds,
        }

    def metrics(self) -> dict[str, float]:
        """Return the mean bytes and seconds of a transfer since the last call; nothing where there was none."""
        now = (self.number, self.bytes, self.seconds)
        (number, size, seconds), self._logged = (a - b for a, b in zip(now, self._logged, strict=True)), now
        return {"transfer_bytes": size / number, "transfer_seconds": seconds / number} if number else {}
