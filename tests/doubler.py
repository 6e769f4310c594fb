"""Work for engines that an actor of Ray has at once: nothing heavy is imported."""

import os
import threading

from textregion.errors import InputError


class Doubler:
    """Loads a number, doubles it; ends its process at one of them."""

    def __init__(self, deadly: int | None = None, bad: int | None = None) -> None:
        self.deadly, self.bad, self.batches = deadly, bad, []

    def load(self, item: int) -> tuple[int, str]:
        return item, threading.current_thread().name

    def work(self, loaded: list) -> list:
        self.batches.append(len(loaded))
        numbers = [number for number, _ in loaded]
        if self.deadly in numbers:
            os._exit(1)
        if self.bad in numbers:
            raise InputError(f"got {self.bad}")
        return [2 * number for number in numbers]
