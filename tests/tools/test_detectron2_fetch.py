"""Tests of tools/detectron2_fetch.py. None needs the network."""

import hashlib
from collections.abc import Iterator

import detectron2_fetch as tool
import pytest


@pytest.fixture
def no_pip_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "pip_setting", lambda _: None)


@pytest.mark.usefixtures("no_pip_settings")
def test_index_is_pypi_by_default():
    assert tool.index_urls() == ["https://pypi.org/simple/"]


def test_index_follows_pips_environment(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.example/simple https://b.example/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    assert tool.index_urls() == [
        "https://mirror.example/simple",
        "https://a.example/simple",
        "https://b.example/simple",
    ]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert tool.index_urls() == []


@pytest.fixture
def fresh_pip_configuration() -> Iterator[None]:
    tool.pip_configuration.cache_clear()
    yield
    tool.pip_configuration.cache_clear()


@pytest.mark.usefixtures("fresh_pip_configuration")
def test_index_follows_pips_configuration_file(monkeypatch, tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://configured.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    assert tool.pip_setting("index-url") == "https://configured.example/simple"


def test_sdist_is_fetched_from_find_links(monkeypatch, sdist, tmp_path):
    pytest.importorskip("unearth")
    settings = {"no-index": "1", "find-links": str(sdist.parent)}
    monkeypatch.setattr(tool, "pip_setting", settings.get)
    target = tmp_path / "download"
    target.mkdir()
    assert tool.fetch_sdist(target).read_bytes() == sdist.read_bytes()


def test_right_hash_passes(sdist):
    tool.verify_hash(sdist, hashlib.sha256(sdist.read_bytes()).hexdigest())
