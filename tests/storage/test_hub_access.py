"""Without a network a name on the hub is answered in under three seconds."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pytest
from huggingface_hub import constants

from circuitcut.data.hub import load_hub
from circuitcut.models.source import find_source, read_config
from circuitcut.storage.errors import UserError
from circuitcut.storage.hub_access import offline_without_answer


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The settings of a user who has not said that there is no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_ETAG_TIMEOUT", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def refused(*_: Any, **__: Any) -> NoReturn:
    raise ConnectionRefusedError(111, "Connection refused")


def unknown(*_: Any, **__: Any) -> NoReturn:
    raise socket.gaierror(-3, "Temporary failure in name resolution")


def silent(*_: Any, **__: Any) -> NoReturn:
    """A name server that does not answer; the thread that asks is left behind."""
    time.sleep(6)
    unknown()


@pytest.fixture(params=[unknown, silent], ids=["refused", "silent"])
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    look_up: Callable[..., NoReturn] = request.param
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.mark.usefixtures("_no_network")
def test_a_model_that_was_never_downloaded_is_refused_at_once():
    start = time.perf_counter()
    with pytest.raises(UserError, match="the hub does not answer") as caught:
        read_config(find_source("bert-bsae-uncased", None))
    assert time.perf_counter() - start < 3
    assert "bert-bsae-uncased" in str(caught.value)
    assert "check the name" in str(caught.value)


@pytest.mark.usefixtures("_no_network")
def test_a_data_set_that_was_never_downloaded_is_refused_at_once():
    start = time.perf_counter()
    with pytest.raises(UserError, match="the hub does not answer") as caught:
        load_hub("hub:no/such")
    assert time.perf_counter() - start < 3
    assert "'no/such'" in str(caught.value)


@pytest.mark.usefixtures("_no_network")
def test_the_second_look_does_not_wait_again():
    assert offline_without_answer()
    start = time.perf_counter()
    assert offline_without_answer()
    assert time.perf_counter() - start < 0.1
    assert datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["hub:", "hub:/", "hub:a/b/c", "hub:a b"])
def test_what_is_no_name_is_refused_without_a_look_at_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(socket, "getaddrinfo", silent)
    with pytest.raises(UserError, match="must be hub:owner/name"):
        load_hub(name)


class Missing(BaseHTTPRequestHandler):
    """A hub that has nothing, but answers."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    """Address of a hub on this machine."""
    with HTTPServer(("127.0.0.1", 0), Missing) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_hub_that_answers_is_asked(server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "ENDPOINT", server)
    assert not offline_without_answer()
    assert not constants.HF_HUB_OFFLINE
