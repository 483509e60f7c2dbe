"""The home directory: made once, private, and refused in a sentence where it cannot be used."""

from pathlib import Path

import pytest

from control_plane.embedded.errors import HomeError
from control_plane.embedded.home import Credentials, Home, Secrets, default_home
from control_plane.embedded.lock import HomeLock

CREDENTIALS = Credentials(control="http://127.0.0.1:1", gateway="http://127.0.0.1:2", key="ebb_x.y")


def test_credentials_and_secrets_are_private_and_come_back(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    home.write_credentials(CREDENTIALS)
    home.write_secrets(Secrets(node_key="n"))
    assert home.read_credentials() == CREDENTIALS
    assert home.read_secrets() == {"node_key": "n"}
    for path in (home.credentials, home.secrets):
        assert path.stat().st_mode & 0o777 == 0o600
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in home.root.glob(".*")) == []


def test_a_home_that_never_ran_has_no_credentials(tmp_path: Path) -> None:
    assert Home(tmp_path / "none").read_credentials() is None
    assert Home(tmp_path / "none").read_secrets() is None


@pytest.mark.parametrize("text", ["{", "", '{"control": "x"}'])
def test_broken_credentials_are_said_in_a_sentence(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    home.credentials.write_text(text)
    with pytest.raises(HomeError, match=r"Delete it and run 'ebb up' again\."):
        home.read_credentials()


def test_a_file_in_the_way_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="--home DIR"):
        Home(tmp_path / "file").create()


def test_the_environment_names_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EBB_HOME", str(tmp_path))
    assert default_home() == tmp_path
    monkeypatch.delenv("EBB_HOME")
    assert default_home() == Path.home() / ".ebb"


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = HomeLock(tmp_path / "lock"), HomeLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
