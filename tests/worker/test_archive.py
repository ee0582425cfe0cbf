import os
from pathlib import Path

from worker.data import archive


def test_a_directory_comes_back_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "deep" / "b.bin").write_bytes(os.urandom(3 << 20))
    archive.pack(source, tmp_path / "packed.zip")
    archive.unpack(tmp_path / "packed.zip", tmp_path / "target")
    assert (tmp_path / "target" / "a.txt").read_text() == "a"
    assert (tmp_path / "target" / "deep" / "b.bin").read_bytes() == (source / "deep" / "b.bin").read_bytes()


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, time in (("one", 1_000_000_000), ("two", 1_500_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("a")
        os.utime(tmp_path / name / "a.txt", (time, time))
        archive.pack(tmp_path / name, tmp_path / f"{name}.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_links_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    source = tmp_path / "source"
    source.mkdir()
    (source / "link").symlink_to(tmp_path / "secret")
    archive.pack(source, tmp_path / "packed.zip")
    archive.unpack(tmp_path / "packed.zip", tmp_path / "target")
    assert not (tmp_path / "target" / "link").exists()
