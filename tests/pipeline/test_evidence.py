"""A lot's record is proven entry by entry, and whatever was changed in it is found and named."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.contracts import BadConfig, BadData, Decision, Reason, Verdict
from pipeline.evidence.chain import Chain, Tampered, genesis, head_path, link_in, read_chain
from pipeline.evidence.lots import FOLDER, Lots, chain_name
from pipeline.evidence.verify import archives_of, verify
from pipeline.outputs.archive import Archive
from pipeline.stream import VerdictDelivery
from tests.pipeline.commands import command_in, sentence
from tests.pipeline.outgoing import OPEN, delivery

LOT = "2026-11"
WRITER = """
import sys
import time
from pathlib import Path
from pipeline.evidence.chain import Chain
chain = Chain(Path(sys.argv[1]), "A")
print("ready", flush=True)
while True:
    chain.append({"kind": "verdict", "frame_id": "left/1-1"})
"""


def numbered(path: Path, count: int, title: str = "A") -> list[bytes]:
    """A chain of so many entries; its lines."""
    chain = Chain(path, title)
    assert chain.broken == ""
    for number in range(count):
        chain.append({"kind": "verdict", "frame_id": f"left/1-{number}"})
    chain.close()
    return path.read_bytes().splitlines(keepends=True)


def kept(folder: Path, count: int = 6, max_bytes: int = 10**9) -> Path:
    """An archive with evidence of parts of two cameras; the lot's chain."""
    lots = Lots(folder / FOLDER)
    archive = Archive(folder, max_bytes, None, lots)
    for number in range(count):
        decision = (Decision.PASS, Decision.FAIL, Decision.UNDECIDED)[number % 3]
        one = delivery(number, decision, ("left", "right")[number % 2], lot=LOT)
        lots.verdict(one)
        archive.act(one, OPEN)
    lots.close()
    return folder / FOLDER / chain_name(LOT)


# -- one chain -------------------------------------------------------------------------------


def test_a_whole_chain_is_proven(tmp_path: Path) -> None:
    """Entries come back in their order, each with the hash of the one before."""
    lines = numbered(tmp_path / "a.jsonl", 5)
    links = list(read_chain(tmp_path / "a.jsonl", "A"))
    assert [link.entry["n"] for link in links] == [0, 1, 2, 3, 4]
    assert links[0].entry["prev"] == genesis("A")
    assert [link.entry["prev"] for link in links[1:]] == [link.hash for link in links[:-1]]
    assert all(json.loads(line)["sha256"] for line in lines)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_found(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Wherever one byte of the record or of its head becomes another, the check fails."""
    folder = tmp_path_factory.getbasetemp() / "flipped"
    folder.mkdir(exist_ok=True)
    path = folder / "a.jsonl"
    path.unlink(missing_ok=True)
    head_path(path).unlink(missing_ok=True)
    numbered(path, 4)
    victim = data.draw(st.sampled_from([path, head_path(path)]))
    told = bytearray(victim.read_bytes())
    at = data.draw(st.integers(0, len(told) - 1))
    told[at] ^= data.draw(st.integers(1, 255))
    victim.write_bytes(told)
    with pytest.raises(Tampered, match=r"a\.(jsonl|head)"):
        list(read_chain(path, "A"))


def test_every_single_byte_of_a_small_record_is_covered(tmp_path: Path) -> None:
    """No position escapes: each byte in turn, in record and head."""
    path = tmp_path / "a.jsonl"
    numbered(path, 2)
    for victim in (path, head_path(path)):
        whole = victim.read_bytes()
        for at in range(len(whole)):
            for flip in (1, 32, 128):
                victim.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
                with pytest.raises(Tampered):
                    list(read_chain(path, "A"))
        victim.write_bytes(whole)
    assert len(list(read_chain(path, "A"))) == 2


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda lines: lines[:3] + lines[4:], "line 4"),
        (lambda lines: lines[1:], "line 1"),
        (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], "line 3"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "line 3"),
        (lambda lines: lines[:-1], "ends after 5 entries, but 6 were written"),
        (lambda lines: lines[:1], "ends after 1 entries"),
        (lambda _: [], "line 1|ends after 0 entries"),
        (lambda lines: [*lines, b"more\n"], "line 7"),
        (lambda lines: [*lines[:2], b"\n", *lines[2:]], "line 3"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "line 6"),
        (lambda lines: [*lines[:3], lines[3][: len(lines[3]) // 2]], "line 4"),
    ],
)
def test_missing_reordered_doubled_and_cut_lines_are_named(
    tmp_path: Path, change: object, place: str
) -> None:
    """What is gone, out of order, twice there or cut off is found at its place."""
    path = tmp_path / "a.jsonl"
    lines = numbered(path, 6)
    path.write_bytes(b"".join(change(lines)))  # type: ignore[operator]
    with pytest.raises(Tampered, match=place):
        list(read_chain(path, "A"))


def test_a_record_passes_for_no_other(tmp_path: Path) -> None:
    """A chain under another lot's name, or with another's head, is refused."""
    numbered(tmp_path / "a.jsonl", 3, "A")
    numbered(tmp_path / "b.jsonl", 3, "B")
    with pytest.raises(Tampered, match="line 1"):
        list(read_chain(tmp_path / "b.jsonl", "A"))
    head_path(tmp_path / "b.jsonl").replace(head_path(tmp_path / "a.jsonl"))
    with pytest.raises(Tampered, match="not the head"):
        list(read_chain(tmp_path / "a.jsonl", "A"))
    with pytest.raises(Tampered, match="no head"):
        list(read_chain(tmp_path / "b.jsonl", "B"))


def test_restarts_continue_the_chain(tmp_path: Path) -> None:
    """However often it is opened again, one chain goes on."""
    for _ in range(4):
        numbered(tmp_path / "a.jsonl", 3)
    assert len(list(read_chain(tmp_path / "a.jsonl", "A"))) == 12


def test_a_crash_between_line_and_head_is_taken_over(tmp_path: Path) -> None:
    """One entry more than the head says, or half a line, is a crash and no fault."""
    path = tmp_path / "a.jsonl"
    numbered(path, 3)
    before = head_path(path).read_bytes()
    lines = numbered(path, 1)
    head_path(path).write_bytes(before)
    assert len(list(read_chain(path, "A"))) == 4
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40])
    assert len(list(read_chain(path, "A"))) == 3
    numbered(path, 2)
    assert len(list(read_chain(path, "A"))) == 5
    path.write_bytes(b"")
    head_path(path).write_bytes(b"")
    path.write_bytes(lines[0])
    assert numbered(path, 1)


@pytest.mark.parametrize("beyond", [2, 3])
def test_more_than_one_entry_beyond_the_head_is_no_crash(tmp_path: Path, beyond: int) -> None:
    """Two entries that the head has not seen were added by somebody else."""
    path = tmp_path / "a.jsonl"
    numbered(path, 3)
    before = head_path(path).read_bytes()
    numbered(path, beyond)
    head_path(path).write_bytes(before)
    with pytest.raises(Tampered, match="not the head"):
        list(read_chain(path, "A"))


@pytest.mark.parametrize("harm", ["cut", "flip", "head gone", "head older"])
def test_a_restart_mends_no_fault(tmp_path: Path, harm: str) -> None:
    """A writer that finds its record harmed goes on, and every check tells of it for ever."""
    path = tmp_path / "a.jsonl"
    lines = numbered(path, 4)
    match harm:
        case "cut":
            path.write_bytes(b"".join(lines[:2]))
        case "flip":
            path.write_bytes(path.read_bytes()[:-9] + b"x" + path.read_bytes()[-8:])
        case "head gone":
            head_path(path).unlink()
        case "head older":
            head_path(path).write_bytes(b"%020d %064d\n" % (1, 0))
    chain = Chain(path, "A")
    assert chain.broken
    chain.append({"kind": "verdict"})
    chain.close()
    numbered(path, 1)
    with pytest.raises(Tampered):
        list(read_chain(path, "A"))


def test_kill_minus_nine_leaves_a_record_that_is_proven(tmp_path: Path) -> None:
    """A writer killed at any moment leaves a chain that checks, and that goes on."""
    path = tmp_path / "a.jsonl"
    for _ in range(5):
        words = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(random.uniform(0.01, 0.1))
            writer.send_signal(signal.SIGKILL)
        assert list(read_chain(path, "A")) is not None
    Chain(path, "A").close()
    assert len(list(read_chain(path, "A"))) > 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_line_is_an_entry_or_none(line: bytes) -> None:
    """Whatever stands in the file, reading it raises nothing else."""
    assert link_in(line) is None
    assert link_in(line + b"\n") is None


# -- lots ------------------------------------------------------------------------------------


def test_each_lot_has_its_own_chain(tmp_path: Path) -> None:
    """Cameras and lots come mixed; a repeat is not chained again, over restarts either."""
    for _ in range(2):
        lots = Lots(tmp_path)
        for number in range(12):
            one = delivery(number, Decision.PASS, ("a", "b")[number % 2], lot=f"L{number % 3}")
            lots.verdict(one)
            lots.verdict(one)
        lots.close()
    for lot in ("L0", "L1", "L2"):
        links = list(read_chain(tmp_path / chain_name(lot), lot))
        assert len(links) == 4
        assert {link.entry["verdict"]["lot"] for link in links} == {lot}
        Verdict.model_validate(links[0].entry["verdict"])


def test_more_lots_than_files_may_be_open(tmp_path: Path) -> None:
    """Lots that alternate without end hold a bounded number of files open."""
    lots = Lots(tmp_path)
    before = psutil.Process().num_fds()
    for number in range(90):
        lots.verdict(delivery(number, Decision.PASS, lot=f"L{number % 30}"))
        assert psutil.Process().num_fds() - before <= 16
    lots.close()
    for lot in range(30):
        assert len(list(read_chain(tmp_path / f"L{lot}.jsonl", f"L{lot}"))) == 3


@given(st.text(max_size=300), st.text(max_size=300))
def test_names_of_lots_are_names_of_files(one: str, other: str) -> None:
    """Whatever a lot is called, its file lies in the folder, and is no other lot's."""
    name = chain_name(one)
    assert Path(name).name == name
    assert len(name.encode()) < 255
    assert not name.startswith(".lock")
    assert (name == chain_name(other)) == (one == other)


def test_two_sinks_do_not_share_a_record(tmp_path: Path) -> None:
    """A second writer is refused while the first one lives."""
    first = Lots(tmp_path)
    with pytest.raises(BadConfig, match="another sink"):
        Lots(tmp_path)
    first.close()
    Lots(tmp_path).close()


# -- the archive -----------------------------------------------------------------------------


def test_an_archive_is_proven_with_its_pictures(tmp_path: Path) -> None:
    """Verdicts are counted, passed ones too, and the files of kept parts compared."""
    path = kept(tmp_path)
    (proven,) = verify(str(path), [])
    assert (proven.lot, proven.verdicts, proven.forgotten) == (LOT, 6, 0)
    assert proven.pictures == 4 * 3
    assert verify(LOT, [tmp_path]) == verify(str(tmp_path), []) == [proven]
    assert verify(LOT, [tmp_path], proven.head) == [proven]
    with pytest.raises(Tampered, match="another record"):
        verify(LOT, [tmp_path], "0" * 64)
    with pytest.raises(BadData, match="no record"):
        verify("2026-12", [tmp_path])


def test_any_file_of_the_archive_that_changes_is_named(tmp_path: Path) -> None:
    """One byte of a picture, mask or record; or one of them gone."""
    kept(tmp_path)
    files = sorted(path for path in tmp_path.glob("*/*") if path.parent.name != FOLDER)
    assert {path.name.partition(".")[2] for path in files} == {
        "picture.png",
        "mask.png",
        "json",
    }
    for path in files:
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(Tampered, match=path.name):
                verify(LOT, [tmp_path])
        path.unlink()
        with pytest.raises(Tampered, match=r"is gone"):
            verify(LOT, [tmp_path])
        path.write_bytes(whole)
    assert verify(LOT, [tmp_path])


def test_room_that_was_made_is_no_theft(tmp_path: Path) -> None:
    """Parts that a bounded archive has forgotten are told from those that were taken away."""
    kept(tmp_path, 30, max_bytes=20_000)
    (proven,) = verify(LOT, [tmp_path])
    assert proven.forgotten > 0
    assert proven.verdicts == 30
    next(tmp_path.glob("*/*.picture.png")).unlink()
    with pytest.raises(Tampered, match="is gone"):
        verify(LOT, [tmp_path])


def test_a_part_kept_before_a_crash_is_chained_after_it(tmp_path: Path) -> None:
    """Files that were written when the sink died before it could note them are noted then."""
    one = delivery(1, Decision.FAIL, lot=LOT)
    Archive(tmp_path, 10**9).act(one, OPEN)
    lots = Lots(tmp_path / FOLDER)
    Archive(tmp_path, 10**9, None, lots).act(one, OPEN)
    lots.verdict(one)
    lots.close()
    (proven,) = verify(LOT, [tmp_path])
    assert (proven.verdicts, proven.pictures) == (1, 3)


def test_another_picture_than_was_seen_is_found(tmp_path: Path) -> None:
    """A picture swapped before it was kept differs from the one that came with the verdict."""
    lots, one = Lots(tmp_path / FOLDER), delivery(1, Decision.FAIL, lot=LOT)
    lots.verdict(one)
    other = VerdictDelivery("left", one.entry_id, one.verdict, one.mask_png, one.mask_png)
    Archive(tmp_path, 10**9, None, lots).act(other, OPEN)
    lots.close()
    with pytest.raises(Tampered, match="another picture"):
        verify(LOT, [tmp_path])


def test_a_chain_that_was_taken_away_is_missed(tmp_path: Path) -> None:
    """In a folder, a head without its record is a record that is gone."""
    kept(tmp_path).unlink()
    with pytest.raises(Tampered, match="is gone"):
        verify(str(tmp_path), [])


def test_the_command_names_the_place_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 for what holds; 3 and one sentence for what does not."""
    path, command = kept(tmp_path), command_in(monkeypatch, capsys)
    proof = tmp_path / "proof.json"
    assert command("verify", path, "--json", proof) == (0, "")
    assert json.loads(proof.read_text())["lots"][0]["verdicts"] == 6
    path.write_bytes(path.read_bytes().replace(b'"decision":"FAIL"', b'"decision":"PASS"', 1))
    code, said = command("verify", path)
    assert code == 3
    assert f"of {path} is not as it was written" in sentence(said)


def test_without_a_line_all_runs_are_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lot's name is enough in the folder where lines were run."""
    kept(tmp_path / "runs" / "press" / "archive")
    monkeypatch.chdir(tmp_path)
    assert len(verify(LOT, archives_of(None))) == 1


def test_reasons_are_kept(tmp_path: Path) -> None:
    """An UNDECIDED part is in the chain with its reason."""
    path = kept(tmp_path)
    verdicts = [link.entry.get("verdict") for link in read_chain(path, LOT)]
    assert {v["reason"] for v in verdicts if v} == {None, Reason.DEADLINE}
