"""Secrets that are stored to be read again, and the keys that they are sealed with."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from app import sealing
from app.resources import open_sealer
from app.sealing import BadKey, CannotSeal, CannotUnseal, Sealer
from app.settings import Settings

OLD, NEW = sealing.new_key(), sealing.new_key()


def test_what_is_sealed_is_opened_again_and_shows_nothing() -> None:
    sealed = Sealer([NEW]).seal("whsec_a-secret")
    assert "a-secret" not in sealed
    assert Sealer([NEW]).unseal(sealed) == "whsec_a-secret"
    assert sealed != Sealer([NEW]).seal("whsec_a-secret")


def test_the_first_key_seals_and_every_one_opens() -> None:
    sealed = Sealer([OLD]).seal("a")
    both = Sealer([NEW, OLD])
    assert both.unseal(sealed) == "a"
    assert not both.is_by_the_first_key(sealed)
    assert Sealer([NEW]).unseal(both.seal("b")) == "b"
    assert both.is_by_the_first_key(both.seal("b"))


@pytest.mark.parametrize("keys", [[], [NEW]])
def test_what_no_key_opens_is_said(keys: list[str]) -> None:
    with pytest.raises(CannotUnseal):
        Sealer(keys).unseal(Sealer([OLD]).seal("a"))


@pytest.mark.parametrize("changed", ["", "whsec_a", "gAAAA", "ü"])
def test_what_is_no_seal_is_said(changed: str) -> None:
    with pytest.raises(CannotUnseal):
        Sealer([NEW]).unseal(changed)


def test_a_changed_seal_is_noticed() -> None:
    sealed = Sealer([NEW]).seal("a")
    with pytest.raises(CannotUnseal):
        Sealer([NEW]).unseal(sealed[:-8] + ("A" if sealed[-8] != "A" else "B") + sealed[-7:])


def test_without_keys_nothing_is_sealed() -> None:
    assert not Sealer([]).can_seal
    with pytest.raises(CannotSeal):
        Sealer([]).seal("a")


@pytest.mark.parametrize("key", ["a-secret-passphrase", "ü" * 44, NEW[:-5] + "=", NEW + NEW], ids=range(4))
def test_a_key_that_is_none_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(BadKey, match="`hone secrets new-key` makes one") as refused:
        Sealer([key])
    assert key not in str(refused.value)


def test_a_key_file_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret.key"
    assert sealing.keys_in(path, make=False) == []
    (key,) = sealing.keys_in(path, make=True)
    assert sealing.keys_in(path, make=True) == [key]
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    path.write_text(f"{NEW}\n{key}\n")
    assert sealing.keys_in(path, make=True) == [NEW, key]


def test_processes_that_start_at_once_have_one_key(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    code = f"from pathlib import Path; from app import sealing; print(*sealing.keys_in(Path({str(path)!r}), make=True))"

    def start(_: int) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return done.stdout

    with ThreadPoolExecutor() as four:
        assert len(set(four.map(start, range(4)))) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_key_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret.key"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(BadKey, match=r"secret\.key"):
        sealing.keys_in(path, make=True)


def test_a_laptop_needs_no_setting_and_several_machines_need_one(tmp_path: Path) -> None:
    laptop = Settings(data_directory=tmp_path)
    assert laptop.key_file == tmp_path / "secret.key"
    sealed = open_sealer(laptop).seal("a")
    given = laptop.model_copy(update={"secret_keys": (SecretStr(NEW),)})
    assert open_sealer(given).unseal(sealed) == "a"  # what was sealed before the setting was made
    assert Sealer([NEW]).unseal(open_sealer(given).seal("b")) == "b"
    postgres = Settings(data_directory=tmp_path, database_url=SecretStr("postgresql://u:p@h/d"))
    assert postgres.key_file is None
    assert not open_sealer(postgres).can_seal


def test_with_keys_in_the_settings_no_file_is_made(tmp_path: Path) -> None:
    open_sealer(Settings(data_directory=tmp_path, secret_keys=(SecretStr(NEW),)))
    assert list(tmp_path.iterdir()) == []


def test_keys_are_named_in_a_row_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_SECRET_KEYS", f"{NEW}, {OLD}")
    settings = Settings()
    assert [key.get_secret_value() for key in settings.secret_keys] == [NEW, OLD]
    assert NEW not in repr(settings) + settings.model_dump_json()
