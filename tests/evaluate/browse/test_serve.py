"""The server gives this machine the page and the files it links to, and nothing else."""

import http.client
import json
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from common.errors import UsageError
from evaluate.browse.serve import make_server


@pytest.fixture(scope="module")
def port(runs: Path) -> Generator[int]:
    with make_server(runs, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def _ask(port: int, path: str, *, method: str = "GET", host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_the_page_its_data_and_what_it_links_to_are_given(port: int, runs: Path) -> None:
    status, text = _ask(port, "/")
    assert (status, b"toy" in text) == (200, True)
    data = json.loads(_ask(port, "/runs.json")[1])
    main = next(run for run in data["dictionaries"] if run["name"] == "main")
    for path in (*main["report"], main["features"], "toy/layer03/features/main/data/index.js"):
        assert _ask(port, f"/{path}") == (200, (runs / path).read_bytes())
    assert _ask(port, f"/{main['features']}", method="HEAD") == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/toy/layer03/cache/manifest.json",
        "/toy/layer03/transcoder/main/transcoder.safetensors",
        "/toy/layer03/features/main/evidence.json",
        "/toy/layer03/features/main/data/",
        "/toy/layer03/features/main/data/../evidence.json",
        "/toy/layer03/features/main/data/%2e%2e/evidence.json",
        "/../../../../etc/passwd",
        "//etc/passwd",
        "/%00",
        "/toy",
    ],
)
def test_no_other_path_is_given(port: int, path: str) -> None:
    assert _ask(port, path)[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1"])
def test_a_request_by_another_host_name_is_refused(port: int, host: str) -> None:
    status, body = _ask(port, "/runs.json", host=host)
    assert status == 403
    assert b"toy" not in body


def test_nothing_can_be_sent(port: int) -> None:
    assert _ask(port, "/", method="POST")[0] == 501
    assert _ask(port, "/", method="PUT")[0] == 501


def test_a_link_out_of_the_runs_folder_is_not_followed(runs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    report = tmp_path / "runs" / "toy" / "layer03" / "report" / "main"
    report.mkdir(parents=True)
    (report / "metrics.json").write_text("{}")
    (tmp_path / "runs/toy/layer03/transcoder/main/checkpoints").mkdir(parents=True)
    (report / "notes.txt").symlink_to(secret)
    with make_server(tmp_path / "runs", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        own = server.server_address[1]
        assert _ask(own, "/toy/layer03/report/main/metrics.json")[0] == 200
        assert _ask(own, "/toy/layer03/report/main/notes.txt")[0] == 404
        server.shutdown()
        thread.join()


def test_a_taken_port_is_one_sentence(port: int, runs: Path) -> None:
    with pytest.raises(UsageError, match=f"Port {port} cannot be used"):
        make_server(runs, port)
