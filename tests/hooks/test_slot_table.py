"""A table of slots that cannot be used: slots go by `fits`, said once, and no job fails for it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from slurm_mig.mig import catalog
from slurm_mig.packing.tables import FORM, text
from tests.kit.gpus import A30, H100

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kit.site import Site

pytestmark = pytest.mark.root

STAMP = "slurm-mig=1,1g.10gb/19/4:1"
USER = 64001


def table(path: Path, *, start: int = 2, model: str = H100) -> None:
    """One that wants a single first 1g at `start`, where `fits` has it at 6."""
    geometry = catalog.find(model).geometry()
    bits = geometry.layout_bits
    values = {bit: float(place.start == start) for (_, place), bit in bits.items()}
    path.write_text(text(geometry, values, {}))
    path.chmod(0o644)


def gone(path: Path) -> None:
    path.unlink()


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    """Read as a file it would keep the Prolog until its deadline, which drains the node."""
    path.unlink()
    os.mkfifo(path, 0o644)


def a_users(path: Path) -> None:
    os.chown(path, USER, USER)


def writable(path: Path) -> None:
    path.chmod(0o666)


def below_a_users(path: Path) -> None:
    os.chown(path.parent, USER, USER)


def cut_off(path: Path) -> None:
    path.write_text(path.read_text()[:200])


def later_form(path: Path) -> None:
    told = json.loads(path.read_text()) | {"form": "slurm-mig slot table 2"}
    path.write_text(json.dumps(told))


def strange_layout(path: Path) -> None:
    """A place that its profiles do not have, as of a geometry that has changed."""
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"values": {"0@77": 1.0}}))


def no_values(path: Path) -> None:
    path.write_text(json.dumps({"form": FORM, "classes": [], "values": {"0@0": "x"}}))


UNUSABLE = {
    gone: "No such file",
    directory: "Is a directory",
    fifo: "not a regular file",
    a_users: "owned by uid 64001",
    writable: "mode 0666",
    below_a_users: "owned by uid 64001",
    cut_off: "is no table of slots",
    later_form: "slot table 2",
    strange_layout: "is no table of slots",
    no_values: "is no table of slots",
}


@pytest.fixture
def node(make_site: Callable[..., Site], public_tmp: Path) -> tuple[Site, Path]:
    """A node that goes by a table, in a directory of its own."""
    folder = public_tmp / "learned"
    folder.mkdir(mode=0o755)
    path = folder / "slots.json"
    table(path)
    return make_site(H100, config=f'[packing]\npolicy = "optimal:{path}"\n'), path


def made(site: Site) -> str:
    node = site.node()
    record = node.ledger.open_of_job(7)[0].made
    node.close()
    return record


def test_a_table_that_can_be_used_is(node: tuple[Site, Path]) -> None:
    site, _ = node
    assert site.prolog(7, STAMP).returncode == 0
    assert made(site) == "1g.10gb@2"


@pytest.mark.parametrize("broken", UNUSABLE, ids=lambda item: item.__name__)
def test_a_table_that_cannot_be_used(node: tuple[Site, Path], broken: Callable[..., None]) -> None:
    """The job starts as without it; the Prolog's line and `verify` or the doctor say why."""
    site, path = node
    broken(path)
    done = site.prolog(7, STAMP)
    assert done.returncode == 0, done.stderr
    assert made(site) == "1g.10gb@6"
    assert "slots are chosen by fits" in done.stderr
    assert UNUSABLE[broken] in done.stderr
    assert site.epilog(7).returncode == 0


def test_another_models_table(make_site: Callable[..., Site], public_tmp: Path) -> None:
    """It says nothing of this GPU: nothing is wrong with it, so no Prolog complains."""
    path = public_tmp / "slots.json"
    table(path, model=A30, start=0)
    site = make_site(H100, config=f'[packing]\npolicy = "optimal:{path}"\n')
    done = site.prolog(7, STAMP)
    assert (done.returncode, made(site)) == (0, "1g.10gb@6")
    assert "fits" not in done.stderr


def test_verify_tries_to_write_it(node: tuple[Site, Path]) -> None:
    """Whoever can, decides where jobs go."""
    site, path = node

    def tried() -> dict[str, str]:
        done = site.cli("verify", "--uid", str(USER), "--all", "--json", "--hooks", "/nowhere")
        tries = json.loads(done.stdout[: done.stdout.rindex("}") + 1])["tries"]
        return {item["item"]: item["verdict"] for item in tries}

    assert tried()["table of slots"] == "pass"
    path.chmod(0o666)
    assert tried()["table of slots"] == "fail"
