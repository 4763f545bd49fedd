"""The embedded server lives exactly as long as its owner, and shares its folder with none."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from redis import Redis

from engines.contracts import BadConfig, StreamLost
from pipeline.server import SOCKET_PATH_LIMIT, embedded_server

OWNER = """
import sys, time
from pathlib import Path
from pipeline.server import embedded_server
with embedded_server(Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(60)
"""


def facts(url: str, section: str) -> dict[str, str | int]:
    """What the server at ``url`` says of itself."""
    with Redis.from_url(url) as client:
        return dict(client.info(section))


def test_it_serves_and_is_gone(tmp_path: Path) -> None:
    """Inside the block it answers; after it, neither process, socket nor pid file is left."""
    with embedded_server(tmp_path) as url:
        server = psutil.Process(int((tmp_path / "redis.pid").read_text()))
        assert facts(url, "server")["process_id"] == server.pid
    assert not server.is_running()
    assert not (tmp_path / "redis.sock").exists()
    assert not (tmp_path / "redis.pid").exists()


def test_it_loses_no_frame_by_its_settings(tmp_path: Path) -> None:
    """It never evicts, is bounded, opens no TCP port and keeps only its owner's file mode."""
    with embedded_server(tmp_path, maxmemory="64mb") as url, Redis.from_url(url) as client:
        memory = client.info("memory")
        assert (memory["maxmemory_policy"], memory["maxmemory"]) == ("noeviction", 64 * 2**20)
        assert client.config_get("port", "hz", "save") == {"port": "0", "hz": "100", "save": ""}
        assert (tmp_path / "redis.sock").stat().st_mode & 0o777 == 0o700


def test_it_dies_with_a_killed_owner(tmp_path: Path) -> None:
    """SIGKILL of the owner ends the server too, and the folder can be used again."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().startswith(b"unix://")
        server = psutil.Process(int((tmp_path / "redis.pid").read_text()))
        owner.kill()
        server.wait(timeout=10)
    with embedded_server(tmp_path) as url:
        assert facts(url, "server")["process_id"] != server.pid


def test_a_socket_left_by_a_dead_server_is_no_hindrance(tmp_path: Path) -> None:
    """A stale socket file is replaced."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "redis.sock"))
    with embedded_server(tmp_path) as url:
        assert facts(url, "server")["tcp_port"] == 0


def test_a_folder_holds_one_server(tmp_path: Path) -> None:
    """A second server in the same folder is refused by name of the first, which goes on."""
    with embedded_server(tmp_path) as url:
        pid = facts(url, "server")["process_id"]
        with pytest.raises(BadConfig, match=f"pid {pid}"), embedded_server(tmp_path):
            pass
        assert facts(url, "server")["process_id"] == pid


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    """Where the folder's path is too long for a socket, a link in it leads to a short one."""
    folder = tmp_path / ("deep" * 30)
    with embedded_server(folder) as url:
        path = Path(url.removeprefix("unix://"))
        assert len(os.fsencode(path)) <= SOCKET_PATH_LIMIT
        assert (folder / "redis.sock").resolve() == path
        with pytest.raises(BadConfig, match="already runs"), embedded_server(folder):
            pass
        assert facts(url, "server")["tcp_port"] == 0
    assert not path.parent.exists()
    assert not (folder / "redis.sock").is_symlink()
    with embedded_server(folder) as again:
        assert again == url  # who knew the address finds the server that was started again


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The last line of its own log becomes the sentence."""
    with (
        pytest.raises(StreamLost, match="did not start"),
        embedded_server(tmp_path, maxmemory="lots"),
    ):
        pass
    assert not (tmp_path / "redis.pid").exists()


def test_a_missing_binary_is_named(tmp_path: Path) -> None:
    """A server program that is not there is a matter of configuration."""
    with (
        pytest.raises(BadConfig, match="no-such-server"),
        embedded_server(tmp_path, binary=Path("/no-such-server")),
    ):
        pass


def test_a_control_server_remembers(tmp_path: Path) -> None:
    """With ``appendonly`` what was written is there after a restart in the same folder."""
    with embedded_server(tmp_path, appendonly=True) as url, Redis.from_url(url) as client:
        client.set("kept", "1")
    with embedded_server(tmp_path, appendonly=True) as url, Redis.from_url(url) as client:
        assert client.get("kept") == b"1"


def test_ctrl_c_does_not_reach_it(tmp_path: Path) -> None:
    """It has a session of its own: an interrupt of the terminal's group leaves it to our drain."""
    with embedded_server(tmp_path):
        pid = int((tmp_path / "redis.pid").read_text())
        assert os.getsid(pid) == pid != os.getsid(0)


def test_it_stops_even_when_frozen(tmp_path: Path) -> None:
    """A server stopped by SIGSTOP is killed at the end rather than waited for."""
    with embedded_server(tmp_path, stop_timeout_s=0.2):
        server = psutil.Process(int((tmp_path / "redis.pid").read_text()))
        server.send_signal(signal.SIGSTOP)
    assert not server.is_running()


def test_two_start_side_by_side(tmp_path: Path) -> None:
    """Servers in different folders never compete for anything."""
    urls: list[str] = []

    def run(name: str) -> None:
        with embedded_server(tmp_path / name) as url:
            urls.append(str(facts(url, "server")["run_id"]))

    threads = [threading.Thread(target=run, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(urls)) == 4
