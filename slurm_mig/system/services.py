"""System services that hold GPUs: restarted by systemctl, where the configuration says so."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

#: Where systemctl is.
SYSTEMCTL: Final = (Path("/usr/bin/systemctl"), Path("/bin/systemctl"))


class Services:
    """Units of systemd, through one program."""

    def __init__(self, programs: tuple[Path, ...] = SYSTEMCTL) -> None:
        self._programs = programs

    def restart(self, unit: str, timeout: float) -> str:
        """Restart a unit and wait until it is up; why it failed, empty when it did not.

        It is waited for, because the instance can only be destroyed once the old
        process has let go. What is not done after `timeout` seconds systemd goes on with.
        """
        program = next((path for path in self._programs if path.is_file()), None)
        if program is None:
            return "there is no systemctl"
        try:
            done = subprocess.run(
                [str(program), "--no-ask-password", "--no-pager", "restart", "--", unit],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # Nothing that came with the job reaches a root command.
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                cwd="/",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not done within {timeout:.1f} s"
        except OSError as problem:
            return f"{program}: {problem.strerror}"
        if done.returncode == 0:
            return ""
        text = " ".join(done.stderr.decode(errors="replace").split())
        return f"exit {done.returncode}: {text[:200]}"
