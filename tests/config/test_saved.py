"""A run's config.yaml is read without OmegaConf as OmegaConf reads it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pretrain.config import saved
from pretrain.config.overrides import composed
from pretrain.records import UserError

NUMBERS = [0, -1, 2**62, 0.0, 1.0, 1e-5, 1.5e-4, -2.5e-8, 1e20, 1e100, 3.0e8, 1 / 3, math.inf, -math.inf, 0.1]
TEXTS = [
    "1e-05",
    "1e5",
    ".5",
    "1.",
    "12",
    "-3",
    "true",
    "yes",
    "no",
    "on",
    "off",
    "null",
    "~",
    "",
    " a",
    "a: b",
    "#",
    "é",
]
TEXTS += ["2024-01-01", "2024-01-01 10:00:00", "1:30", "1:30.5", "0x1f", "0o7", "0b1", "1_000", ".inf", ".nan", "nan"]
TEXTS += ["[a]", "{a}", "&a", "*a", "!a", "%a", "@a", "`a`", "'a'", '"a"', "a\nb", "s3://b/{0..3}.tar", "=", "<<", "e"]


def test_numbers_and_texts_come_back_with_their_types(tmp_path: Path) -> None:
    content = {"numbers": NUMBERS, "texts": TEXTS, "other": [True, False, None, [], {}, {"a": [{"b": 1}]}]}
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    found = saved.read(path)
    assert repr(found) == repr(content)
    assert repr(found) == repr(OmegaConf.to_container(OmegaConf.load(path)))


@pytest.mark.parametrize("text", ["1e-05", "1E5", "-1e+3", "1.e-3", ".5", "1.5e-4", "3.", "-.inf", "1e-05x", "e5"])
def test_floats_are_floats_however_they_are_written(tmp_path: Path, text: str) -> None:
    """PyYAML alone reads 1e-05 as text."""
    path = tmp_path / "config.yaml"
    path.write_text(f"a: {text}\n")
    expected: Any = OmegaConf.to_container(OmegaConf.load(path))
    assert repr(saved.read(path)) == repr(expected)


@pytest.mark.parametrize("recipe", ["mae_vitl", "dino_vits16", "mae_hiera_base"])
def test_recipes_come_back(tmp_path: Path, recipe: str) -> None:
    plain = OmegaConf.to_container(composed([f"+experiment={recipe}", "data.train=x.tar"]), resolve=True)
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))
    assert repr(saved.read(path)) == repr(plain)


@pytest.mark.parametrize(
    "content",
    ["a: [", "- a", "text", "", "a: !!python/object/apply:os.system ['touch marker']", "a: !!python/name:os.system"],
)
def test_what_no_run_wrote_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"`config.yaml` (cannot be read|holds no keys)"):
        saved.read(Path("config.yaml"))
    assert not Path("marker").exists()
    Path("config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        saved.read(Path("config.yaml"))
    with pytest.raises(UserError, match="cannot be read"):
        saved.read(Path("nothing.yaml"))
