"""Settings files are read whole, or refused in one sentence before they can do harm."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.contracts import BadConfig
from engines.presets import read_settings
from engines.yaml_file import MAX_BYTES, MAX_DEPTH, read_yaml
from pipeline.config import load_line

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HARMFUL = {
    "aliases that unfold": BOMB,
    "an alias inside itself": "&a [*a]",
    "an alias of nothing": "[*a]",
    "deep lists": "[" * 5000 + "]" * 5000,
    "deep keys": "{a: " * 5000 + "}" * 5000,
    "deep blocks": "\n".join(" " * level + "a:" for level in range(MAX_DEPTH + 10)),
    "many values": "[" + "1," * 200_000 + "]",
    "a long number": "a: " + "9" * 20_000,
    "a number to the base of sixty": "a: " + ":".join(["59"] * 100_000),
    "an object": "!!python/object/apply:os.system ['true']",
    "a day that never was": "a: 2026-99-99",
    "an unknown tag": "a: !mine 3",
    "a key that is no key": "{[1]: {2: 3}}",
    "a merge of nothing": "<<: 3",
    "bytes": "a: !!binary '\x01'",
    "a null byte": "a: \0",
    "two documents": "a: 1\n---\nb: 2",
    "a tab": "a:\n\t- b",
    "much": "# " + "x" * MAX_BYTES,
}


@pytest.mark.parametrize("text", HARMFUL.values(), ids=HARMFUL)
def test_harmful_files_are_refused_at_once(tmp_path: Path, text: str) -> None:
    """One sentence, in a moment, whatever the file would unfold to."""
    path = tmp_path / "line.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(BadConfig, match=r"line\.yaml") as error:
        read_yaml(path)
    assert time.process_time() - began < 3
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2000


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Neither another encoding nor a folder nor nothing is settings."""
    for content in (b"\xff\xfe\x00", b"\x80"):
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(BadConfig, match="no text"):
            read_yaml(tmp_path / "x.yaml")
    for path in (tmp_path, tmp_path / "absent.yaml"):
        with pytest.raises(BadConfig, match="cannot be read"):
            read_yaml(path)


def test_keys_are_texts(tmp_path: Path) -> None:
    """A number as a key is no setting, and breaks nothing."""
    (tmp_path / "x.yaml").write_text("0: 1\nline: a\n")
    for read in (load_line, read_settings):
        with pytest.raises(BadConfig, match="holds no settings"):
            read(tmp_path / "x.yaml")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text("abc: ", max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab"), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=80, deadline=None)
@given(value=JSON)
def test_plain_settings_are_read_as_they_are(
    value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What the limits let through is what the library reads; shared parts are no bombs."""
    path = tmp_path_factory.getbasetemp() / "plain.yaml"
    path.write_text(yaml.safe_dump({"one": value, "again": value}))
    assert read_yaml(path) == {"one": value, "again": value}
    assert read_yaml(Path("configs/line.example.yaml"))["line"] == "press-3"
