"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from dssnet_fast.python_ref.files import atomic_write, remove_leftovers


def test_replaces_at_once_with_usual_permissions(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_errors_carry_the_name_of_the_file_itself(tmp_path):
    path = tmp_path / "no" / "a.txt"
    with pytest.raises(OSError, match="No such file") as caught, atomic_write(path):
        pass
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="disk is full") as caught, atomic_write(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "disk is full")
    assert (caught.value.filename, caught.value.errno) == (str(tmp_path / "a.txt"), errno.ENOSPC)
    other = tmp_path / "other"
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.txt"):
        other.read_text()
    assert caught.value.filename == str(other)


def test_leftovers_of_killed_writers_go_and_other_files_stay(tmp_path):
    long_name = "x" * 60 + ".png"
    kept = [".keep.abcd_123.part.png", ".a.abcd_123.part.csv", "a.png", ".a.abcd.part.png"]
    for name in (".a.abcd_123.part.png", f".{'x' * 40}.12345678.part.png", *kept):
        (tmp_path / name).touch()
    remove_leftovers([tmp_path / "a.png", tmp_path / long_name, tmp_path / "gone" / "b.png"])
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
