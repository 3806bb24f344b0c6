"""Reading of YAML files and the lines that their errors name."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from srl.config.files import ConfigFile, configs_dir, find_sweep, read_config
from srl.errors import UserError


def config(tmp_path, text):
    file = tmp_path / "mine.yml"
    file.write_text(text)
    return ConfigFile(file)


def mistake(tmp_path, text):
    with pytest.raises(UserError) as error:
        config(tmp_path, text)
    return str(error.value)


MERGED = """\
base: &base
  gamma: 0.9
  nested:
    deep: 1
list: [one,
  two]
child:
  <<: *base
  n_steps: 5
both:
  <<: [*base, {other: 2}]
"""


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["base"], 1),
        (["base", "nested", "deep"], 4),
        (["list", 1], 6),
        (["child", "n_steps"], 9),
        (["child", "gamma"], 2),
        (["child", "nested", "deep"], 4),
        (["both", "gamma"], 2),
        (["both", "other"], 11),
        (["child", "absent"], 7),
        (["absent"], None),
        ([], None),
    ],
    ids=str,
)
def test_config_file_finds_line_of_direct_and_merged_keys(tmp_path, keys, line):
    assert config(tmp_path, MERGED).line(keys) == line


def test_error_names_file_line_and_key(tmp_path):
    error = config(tmp_path, MERGED).error(["child", "gamma"], "is wrong.")
    assert str(error) == f"{tmp_path / 'mine.yml'}, line 2, key child.gamma: is wrong."


def test_anchors_and_merges_follow_yaml_semantics(tmp_path):
    data = config(tmp_path, MERGED).data
    assert data["child"] == {"gamma": 0.9, "nested": {"deep": 1}, "n_steps": 5}
    assert data["both"] == {"gamma": 0.9, "nested": {"deep": 1}, "other": 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", ["line 3", "'a' is specified twice", "first in line 1"]),
        ("a: {x: 1,\n  x: 2}\n", ["line 2", "'x' is specified twice"]),
        ("a:\n  - {x: 1, x: 2}\n", ["line 2", "'x' is specified twice"]),
        ("a: [1, 2\nb: 3\n", ["line 2"]),
        ("a: 1\n\tb: 2\n", ["line 2"]),
        ("a: *nowhere\n", ["line 1", "undefined alias"]),
        ("a: 1\n---\nb: 2\n", ["line 2"]),
        ("a: !!python/object/apply:os.system [exit]\n", ["line 1", "tags that make Python objects"]),
        ("a: !!python/name:os.system\n", ["line 1", "tags that make Python objects"]),
        ("", ["must be a mapping", "empty"]),
        ("just text\n", ["must be a mapping", "text"]),
        ("- a\n- b\n", ["must be a mapping", "a list"]),
        ("a: 2024-13-45\n", ["mine.yml"]),
        ("a: \x00\n", ["not YAML"]),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, str) else "",
)
def test_malformed_file_error_names_file_and_line(tmp_path, text, says):
    message = mistake(tmp_path, text)
    assert message.startswith(str(tmp_path / "mine.yml"))
    for part in says:
        assert part in message


@pytest.mark.parametrize(
    "text",
    [
        "? [a, b]\n: 1\n",
        "{{a: 1}: 2}\n",
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "[" * 5000 + "]" * 5000,
    ],
    ids=["list as key", "mapping as key", "list in itself", "mapping in itself", "very deep"],
)
def test_unusual_yaml_raises_only_user_errors(tmp_path, text):
    # The models reject this content; parsing it must not raise a Python error
    with contextlib.suppress(UserError):
        config(tmp_path, text)


def test_nested_aliases_are_parsed_in_linear_time(tmp_path):
    def give_up(number, frame):
        raise TimeoutError("reading grows exponentially with the depth of aliases")

    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 26)]
    handler = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(3)
    try:
        assert len(config(tmp_path, "\n".join(lines)).data) == 26
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def test_missing_file_error_lists_files_in_same_folder(tmp_path, monkeypatch):
    (tmp_path / "there.yml").write_text("a: 1\n")
    with pytest.raises(UserError, match=r"no such file\. .* holds there\.yml"):
        ConfigFile(tmp_path / "mine.yml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such file\. The current folder holds there\.yml"):
        ConfigFile(Path("mine.yml"))


def test_unreadable_files_raise_user_errors(tmp_path):
    (tmp_path / "latin.yml").write_bytes(b"a: \xe9\n")
    for path in (tmp_path, tmp_path / "latin.yml"):
        with pytest.raises(UserError, match="cannot be read"):
            ConfigFile(path)


def test_changed_file_is_reloaded(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("a: 1\n")
    assert read_config(file).data == {"a": 1}
    file.write_text("a: 2\n")
    os.utime(file, ns=(1, 1))
    assert read_config(file).data == {"a": 2}


@pytest.mark.parametrize(
    "name", ["continuous_srl", "continuous_srl.yml", "configs/sweeps/continuous_srl.yml"]
)
def test_shipped_sweep_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_sweep(Path(name)) == configs_dir() / "sweeps" / "continuous_srl.yml"


def test_local_file_takes_precedence_over_shipped_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "continuous_srl.yml").write_text("a: 1\n")
    assert find_sweep(Path("continuous_srl.yml")).samefile(tmp_path / "continuous_srl.yml")


def test_unknown_sweep_error_names_nearest_match():
    with pytest.raises(UserError, match="Did you mean continuous_srl"):
        find_sweep(Path("continuos_srl"))
    with pytest.raises(UserError, match="no such sweep"):
        find_sweep(Path("x" * 300))
