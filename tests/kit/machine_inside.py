"""A machine of its own for the manual's commands, so that they run as they are written there.

    unshare --mount --pid --net --uts --fork --kill-child python tests/kit/machine_inside.py <SPEC

Mounts, processes, network and host name are this program's alone: /etc, /opt, /var and /srv are
layers that vanish with it, /tmp, /run and /dev are empty ones. SPEC is a JSON object:

    host      the machine's name
    simulate  [NVML name, count]: simulated GPUs, with nodes in /dev; none if not given
    opt       whether /opt/slurm-mig has this slurm-mig
    wheels    where pip looks, instead of the network; ours is in root's home, too
    keep      directories below /tmp that are seen in this world, too
    sessions  lists of [user, statement]: each list is one shell of root's

It prints a JSON list of such lists with the exit code and the output of each statement.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).parents[2]
#: Layers and programs of this world.
HERE = next(Path(place) for place in ("/mnt", "/media") if not TOP.is_relative_to(place))
LAYERS = ("/etc", "/opt", "/var", "/srv", "/root", "/usr/local")
USERS = {"alice": 64001, "bob": 64002}
MACHINE = Path("/srv/mig")
CONFIG = Path("/etc/slurm-mig/config.toml")


def call(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)


def layers(keep: list[str]) -> None:
    """What is written here is gone with this process."""
    call("mount", "-t", "proc", "proc", "/proc")
    named = (TOP, Path(sys.prefix), *map(Path, keep))
    kept = [path for path in named if path.is_relative_to("/tmp")]
    call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", HERE)
    for path in kept:
        (HERE / "kept" / path.name).mkdir(parents=True)
        call("mount", "--bind", path, HERE / "kept" / path.name)
    for layer in LAYERS:
        upper, work = HERE / f"upper{layer}", HERE / f"work{layer}"
        upper.mkdir(parents=True)
        work.mkdir(parents=True)
        shutil.copystat(layer, upper)
        options = f"lowerdir={layer},upperdir={upper},workdir={work}"
        call("mount", "-t", "overlay", "-o", options, "overlay", layer)
    call("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp")
    call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for path in kept:
        path.mkdir(parents=True)
        call("mount", "--bind", HERE / "kept" / path.name, path)


def devices() -> None:
    """The nodes that every program expects, in a /dev of our own."""
    new = HERE / "dev"
    new.mkdir()
    call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", new)
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        call("cp", "-a", f"/dev/{name}", new / name)
    (new / "fd").symlink_to("/proc/self/fd")
    for name in ("shm", "pts"):
        (new / name).mkdir()
    call("mount", "--move", new, "/dev")
    call("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    call("mount", "-t", "devpts", "-o", "newinstance,ptmxmode=0666", "devpts", "/dev/pts")
    Path("/dev/ptmx").symlink_to("pts/ptmx")


def network(host: str) -> None:
    """As Debian's installer leaves it: the machine's own name is not at localhost's address."""
    call("hostname", host)
    Path("/etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {host}\n")
    call("ip", "link", "set", "lo", "up")
    # Slurm resolves names with AI_ADDRCONFIG: with 127.0.0.1 alone it would find nothing.
    call("ip", "address", "add", "127.0.1.1/8", "dev", "lo")


def people() -> None:
    for name, uid in USERS.items():
        home = Path("/srv/home") / name
        home.mkdir(parents=True)
        os.chown(home, uid, uid)
        for file, line in (
            ("passwd", f"{name}:x:{uid}:{uid}::{home}:/bin/sh\n"),
            ("group", f"{name}:x:{uid}:\n"),
        ):
            with Path("/etc", file).open("a") as text:
                text.write(line)
    Path("/srv/home").chmod(0o755)


def programs() -> Path:
    """Stand-ins for what a machine without systemd has not."""
    place = HERE / "bin"
    place.mkdir()
    for name in ("systemctl", "journalctl"):
        shutil.copy(TOP / "tests/standins" / name, place / name)
        (place / name).chmod(0o755)
    return place


def hardware(name: str, count: int) -> None:
    """Simulated GPUs where a driver's would be."""
    from slurm_mig.mig import catalog
    from slurm_mig.simulator import create
    from slurm_mig.simulator.spec import gpu_spec

    machine = create(MACHINE, [gpu_spec(catalog.find(name), name, count)])
    for index in range(count):
        call("cp", "-a", machine.tree.dev / f"nvidia{index}", "/dev")
        with machine.change(index) as board:
            board.set_mode(True, busy=False)
    CONFIG.parent.mkdir(mode=0o755)
    CONFIG.write_text(f'[driver]\nlibrary = "simulator:{MACHINE}"\n')


def installed() -> None:
    """This slurm-mig where the manual puts it."""
    place = Path("/opt/slurm-mig/bin")
    place.mkdir(parents=True)
    for name, words in (("slurm-mig", "-m slurm_mig"), ("python3", "")):
        script = place / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        script.chmod(0o755)
    Path("/usr/local/bin/slurm-mig").symlink_to(place / "slurm-mig")


def environ(place: Path, wheels: str | None) -> dict[str, str]:
    found = {
        "PATH": f"{place}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root", "LC_ALL": "C.UTF-8", "TZ": "UTC", "TERM": "dumb",
    }  # fmt: skip
    if wheels:
        found |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "PIP_CONFIG_FILE": "/dev/null"}
        found |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return found


def session(statements: list[tuple[str, str]], env: dict[str, str]) -> list[dict[str, object]]:
    """One shell of root's; a statement of another user gets a shell of that user's."""
    place = Path(tempfile.mkdtemp(dir=HERE))
    place.chmod(0o755)
    script = ""
    for number, (user, statement) in enumerate(statements):
        text = statement
        if user != "root":
            (place / f"{number}.sh").write_text(f"cd\n{statement}\n")
            text = f"runuser -u {user} -- env HOME=/srv/home/{user} bash {place}/{number}.sh"
        # What a command leaves in the background must not hold what its answer is read from.
        script += (
            f"{{\n{text}\n}} >{place}/{number}.out 2>&1 </dev/null\n"
            f"echo $? >{place}/{number}.code\n"
        )
    (place / "script").write_text(script)
    shell = ["bash", "--noprofile", "--norc", str(place / "script")]
    done = subprocess.run(
        shell, env=env, cwd="/root", stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr, file=sys.stderr)
    return [result(place, number, item) for number, item in enumerate(statements)]


def result(place: Path, number: int, item: tuple[str, str]) -> dict[str, object]:
    code, out = place / f"{number}.code", place / f"{number}.out"
    return {
        "user": item[0],
        "statement": item[1],
        "code": int(code.read_text()) if code.exists() else None,
        "out": out.read_text(errors="replace") if out.exists() else "",
    }


def main() -> None:
    """Build the world, run what is asked, say how it went."""
    spec = json.load(sys.stdin)
    layers(spec["keep"])
    devices()
    network(spec["host"])
    people()
    place = programs()
    if spec.get("simulate"):
        hardware(*spec["simulate"])
    if spec.get("opt"):
        installed()
    for wheel in Path(spec["wheels"]).glob("slurm_mig-*") if spec.get("wheels") else ():
        shutil.copy(wheel, "/root")
    env = environ(place, spec.get("wheels"))
    json.dump([session(item, env) for item in spec["sessions"]], sys.stdout)


if __name__ == "__main__":
    main()
