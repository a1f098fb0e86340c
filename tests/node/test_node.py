"""From configuration to adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import DriverMissing, GpuLost, NotPermitted, SimulatorFault
from slurm_mig.node.node import Node, require_root
from slurm_mig.settings import Config
from tests.kit.gpus import A30, H100

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kit.site import Site

pytestmark = pytest.mark.root


def test_slurms_index_counts_along_gres_conf(make_site: Callable[..., Site]) -> None:
    """By minor unless the config says in which order gres.conf has them."""
    site = make_site(H100, A30, config="[gpus]\norder = [1, 0]\n")
    node = site.node()
    assert [gpu.name for gpu in node.gpus_at([0, 1])] == [A30, H100]
    node.close()


def test_more_indexes_than_gpus(node: Node) -> None:
    """A GPU fell off the bus, or gres.conf promises one too many."""
    with pytest.raises(GpuLost, match="GPU index 2, this node has 2 GPUs"):
        node.gpus_at([0, 2])


def test_an_order_that_names_a_gpu_which_is_not_there(make_site: Callable[..., Site]) -> None:
    """The config is compared with what the driver shows."""
    node = make_site(H100, config="[gpus]\norder = [0, 3]\n").node()
    assert [gpu.minor for gpu in node.gpus_at([0])] == [0]
    with pytest.raises(GpuLost, match="minor 3, which is Slurm's index 1; there are 0"):
        node.gpus_at([1])
    node.close()


def test_a_lost_gpu_spoils_the_count(site: Site) -> None:
    """Which index is which cannot be known then."""
    site.machine.lose(1)
    node = site.node()
    with pytest.raises(GpuLost):
        node.gpus_at([0])
    node.close()


def test_managed_gpus(make_site: Callable[..., Site]) -> None:
    """All that know MIG, or those listed."""
    node = make_site(H100, H100, config="[gpus]\nmanaged = [1]\n").node()
    assert [node.managed(gpu) for gpu in node.driver.gpus()] == [False, True]
    node.close()


def test_the_nodes_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's, else the host's short one."""
    assert Node(Config(), {"SLURMD_NODENAME": "n7"}).name == "n7"
    monkeypatch.setattr("socket.gethostname", lambda: "gpu01.example.org")
    assert Node(Config(), {}).name == "gpu01"


def test_libraries_that_are_not_there(tmp_path: Path) -> None:
    """A path without library, a simulator without machine."""
    with pytest.raises(DriverMissing, match="/none.so"):
        _ = Node(Config(library="/none.so"), {}).driver
    with pytest.raises(SimulatorFault, match="simulator create"):
        _ = Node(Config(library=f"simulator:{tmp_path}"), {}).driver


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    """A node can be asked its name on a machine without GPU, ledger or rights."""
    node = Node(Config(state=tmp_path / "state", run=tmp_path / "run"), {})
    assert node.name
    node.close()
    assert list(tmp_path.iterdir()) == []


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is touched."""
    require_root()
    monkeypatch.setattr("os.geteuid", lambda: 64001)
    with pytest.raises(NotPermitted, match="run it as root"):
        require_root()


@pytest.mark.parametrize("how", ["file", "directory"])
def test_a_library_that_a_user_could_have_written(tmp_path: Path, how: str) -> None:
    """Root would run his code: refused before it is loaded."""
    library = tmp_path / "lib/libnvidia-ml.so.1"
    library.parent.mkdir()
    library.write_bytes(b"")
    with pytest.raises(DriverMissing, match="file too short"):
        _ = Node(Config(library=str(library))).driver
    bad = library if how == "file" else library.parent
    bad.chmod(0o777)
    with pytest.raises(DriverMissing, match=f"load {library}: {bad} .*with mode 0777"):
        _ = Node(Config(library=str(library))).driver
