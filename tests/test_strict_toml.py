"""Strict TOML: suggestions, key paths, and one line per mistake."""

from pathlib import Path

import pytest
from pydantic import Field

from synergy_gym.strict_toml import Table, dotted, read_toml, suggest


class Inner(Table):
    delay_ms: float = Field(ge=0, description="a time in milliseconds, >= 0")


class Outer(Table):
    name: str = Field(description="a name")
    sizes: tuple[int, ...] = Field((), description="a list of whole numbers")
    inner: tuple[Inner, ...] = Field((), min_length=0, description="tables [[inner]]")


def _read(tmp_path: Path, text: str) -> Outer:
    path = tmp_path / "file.toml"
    path.write_text(text)
    return read_toml(path, Outer, BadFileError)


class BadFileError(ValueError):
    """The caller's own error class."""


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("horizon", "horizon_s"),
        ("horizon_ms", "horizon_s"),
        ("rate", "rate_rps"),
        ("block", "blocks"),
        ("horzon_s", "horizon_s"),
        ("colour", None),
        ("s", None),
    ],
)
def test_suggest(key: str, guess: str | None) -> None:
    assert suggest(key, ["horizon_s", "warmup_s", "rate_rps", "blocks"]) == guess


def test_dotted() -> None:
    assert dotted(("engine", 2, "kv", "gpus")) == "engine[2].kv.gpus"
    assert dotted(()) == "(top level)"


def test_a_good_file(tmp_path: Path) -> None:
    outer = _read(tmp_path, 'name = "a"\nsizes = [1, 2]\n[[inner]]\ndelay_ms = 3')
    assert outer.sizes == (1, 2)
    assert outer.inner[0].delay_ms == 3.0


def test_each_mistake_is_one_line_with_its_key(tmp_path: Path) -> None:
    text = 'name = 3\nsizes = [1, "x"]\n[[inner]]\ndelay_s = 1\n[[inner]]\ndelay_ms = -1'
    with pytest.raises(BadFileError) as caught:
        _read(tmp_path, text)
    path = tmp_path / "file.toml"
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: inner[0].delay_s: unknown key; use `delay_ms`"
    assert lines[1].startswith(f"{path}: name: is 3: ")
    assert lines[1].endswith("; give a name")
    assert lines[2].startswith(f"{path}: sizes[1]: is 'x': ")
    assert lines[3].startswith(f"{path}: inner[1].delay_ms: is -1: ")
    assert len(lines) == 4


def test_an_unknown_key_without_a_guess_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="colour: unknown key; known keys: name, sizes, inner"):
        _read(tmp_path, 'name = "a"\ncolour = 1')


def test_a_bare_string_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"sizes: is 'x'.*give a list of whole numbers"):
        _read(tmp_path, 'name = "a"\nsizes = "x"')
