"""Progress of a long pass over data: a bar with rates on a terminal, a line every 15 seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_LINE_SECONDS = 15.0


class Progress:
    """Counts bytes and tokens; a context manager. `enabled=False` prints nothing."""

    def __init__(self, label: str, total_bytes: int | None, enabled: bool) -> None:
        self._label = label
        self._enabled = enabled
        self._bytes = 0
        self._tokens = 0
        self._started = self._last_line = time.monotonic()
        self._bar: tqdm | None = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(desc=label, total=total_bytes, unit="B", unit_scale=True, dynamic_ncols=True)

    def advance(self, bytes_: int, tokens: int = 0) -> None:
        """Add processed bytes and tokens."""
        self._bytes += bytes_
        self._tokens += tokens
        if self._bar is not None:
            self._bar.set_postfix_str(self._token_rate(), refresh=False)
            self._bar.update(bytes_)
        elif self._enabled and time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._print_line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            if kind is None:
                self._bar.total = self._bytes  # the total was a guess
            self._bar.close()
        elif self._enabled and kind is None:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        seconds = max(self._last_line - self._started, 1e-9)
        tokens = f", {self._token_rate()}" if self._tokens else ""
        megabytes = self._bytes / 1e6
        print(
            f"data: {self._label}: {megabytes:.1f} MB in {seconds:.0f} s, {megabytes / seconds:.1f} MB/s{tokens}",
            file=sys.stderr,
            flush=True,
        )

    def _token_rate(self) -> str:
        if not self._tokens:
            return ""
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{self._tokens / 1e6:.2f} M tokens, {self._tokens / seconds / 1e6:.2f} M tokens/s"


def print_status(enabled: bool, message: str) -> None:
    """Print a line about the build on standard error."""
    if enabled:
        print(f"data: {message}", file=sys.stderr, flush=True)
