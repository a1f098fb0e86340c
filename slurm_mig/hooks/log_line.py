"""The one line that a hook leaves behind: to slurmd, to syslog."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Final

from slurm_mig.text import ascii_line
from slurm_mig.values import dataclass, field

#: Seconds that a log line waits for syslog to take it; stderr has it by then.
SYSLOG_WAIT: Final = 0.5

#: Levels of syslog that a hook's line can have, the worst last.
LEVELS: Final = ("INFO", "WARNING", "ERR")


@dataclass(slots=True)
class LogLine:
    """The one log line of a hook, filled in as it goes."""

    hook: str
    words: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    level: str = "INFO"
    head: str = ""
    started: float = field(default_factory=time.monotonic)

    def add(self, **facts: object) -> None:
        """Append name=value words."""
        self.words += [f"{name}={clean(value)}" for name, value in facts.items()]

    def say(self, level: str, text: str) -> None:
        """How it went; what is said later stands behind it, and the worst level counts."""
        self.level = max(self.level, level, key=LEVELS.index)
        self.said.append(clean(text))

    def write(self) -> None:
        """To syslog and to stderr, which slurmd logs."""
        import syslog
        import threading

        took = round((time.monotonic() - self.started) * 1000)
        words = [*self.words, f"ms={took}", *([f"head={self.head}"] if self.head else [])]
        line = " ".join([self.hook, *words, "; ".join(self.said)]).strip()
        tell_slurmd(f"slurm-mig: {line}\n")
        syslog.openlog("slurm-mig", syslog.LOG_PID, syslog.LOG_DAEMON)
        level = getattr(syslog, f"LOG_{self.level}")
        # A daemon that no longer reads would keep a hook for ever.
        writer = threading.Thread(target=syslog.syslog, args=(level, line), daemon=True)
        # No thread to be had (pids.max, no memory): stderr has it, and the work is done.
        with suppress(RuntimeError, MemoryError):
            writer.start()
            writer.join(SYSLOG_WAIT)


def tell_slurmd(text: str) -> None:
    """To stderr, which slurmd logs; a slurmd that was killed reads it no longer."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def clean(value: object) -> str:
    """Printable ASCII on one line: a log must not carry a user's newlines or escapes."""
    return ascii_line(str(value))[:1000]
