"""Two inspectors, a gate keeper and any order of events, against a model that fits in a dict."""

from __future__ import annotations

import uuid
from collections import Counter
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engines.contracts import Decision, Reason, Verdict
from pipeline.stream import Delivery, open_stream
from pipeline.wire import FrameEntry, undecided
from tests.faults.acting import Acting
from tests.faults.protocol import TRIES_SEEN, Action, begin, steps

consumers = st.sampled_from(["w1", "w2"])
picks = st.integers(0, 10**6)
GATE_NS = 4_000_000_000_000_000_000  # far away: in the year 2096


class Deliveries(RuleBasedStateMachine):
    """The model: which frames are open, and who holds each with which delivery count."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        namespace = f"machine-{uuid.uuid4().hex[:12]}"
        self.stream = self.stack.enter_context(open_stream(self.url, namespace))
        self.admitted = 0
        self.open: set[str] = set()
        self.payload_gone: set[str] = set()
        self.passed_by: set[str] = set()  # frames whose gate has passed
        self.holder: dict[str, tuple[str, int]] = {}
        self.handed: list[tuple[str, Delivery]] = []  # everything ever delivered, also the stale
        self.counts: Counter[str] = Counter()

    def teardown(self) -> None:
        """Answer what is left, as the gate keeper would: the ledger then balances."""
        for frame_id in list(self.open):
            assert self.stream.answer_open(self.late(frame_id))
        assert self.stream.ledger("cam").residual == self.stream.backlog("cam") == 0
        self.stack.close()

    def entry(self, frame_id: str, deadline_ns: int = GATE_NS) -> FrameEntry:
        """A frame of one grey."""
        return FrameEntry(frame_id, "cam", 0, deadline_ns, np.zeros((4, 4, 3), np.uint8))

    def late(self, frame_id: str) -> Verdict:
        """UNDECIDED(deadline)."""
        return undecided(self.entry(frame_id), Reason.DEADLINE, 1)

    def close(self, frame_id: str, outcome: str) -> None:
        """The model of an answer."""
        self.open.discard(frame_id)
        self.holder.pop(frame_id, None)
        self.counts[outcome] += 1

    def is_held(self, consumer: str, delivery: Delivery) -> bool:
        """Whether this token is the valid one, with the payload still there."""
        return self.holder.get(delivery.frame_id) == (consumer, delivery.deliveries)

    @initialize(is_late=st.booleans())
    def begin(self, is_late: bool) -> None:
        """Two frames in the hands of one inspector: else few runs come to an answer at all."""
        self.admit(is_refused=False, is_late=is_late)
        self.admit(is_refused=False, is_late=False)
        self.read("w1", 2)

    @precondition(lambda self: self.admitted < 5)
    @rule(is_refused=st.booleans(), is_late=st.booleans())
    def admit(self, is_refused: bool, is_late: bool) -> None:
        """A new frame, or one that overran; with its gate far away or passed."""
        self.admitted += 1
        frame_id = f"cam/7-{self.admitted}"
        if is_refused:
            overrun = undecided(self.entry(frame_id), Reason.OVERRUN, 1)
            assert self.stream.refuse(overrun)
            self.close(frame_id, "overrun")
        else:
            assert self.stream.admit(self.entry(frame_id, 1 if is_late else GATE_NS))
            self.open.add(frame_id)
            self.passed_by |= {frame_id} if is_late else set()

    @precondition(lambda self: self.admitted > 0)
    @rule(pick=picks)
    def admit_again(self, pick: int) -> None:
        """A repeat after a lost reply, however late."""
        assert not self.stream.admit(self.entry(f"cam/7-{pick % self.admitted + 1}"))

    @rule(consumer=consumers, count=st.integers(1, 3))
    def read(self, consumer: str, count: int) -> None:
        """New frames for one inspector."""
        for delivery in self.stream.read(["cam"], consumer, count, 0):
            assert delivery.frame_id in self.open
            assert delivery.frame_id not in self.holder
            self.holder[delivery.frame_id] = (consumer, 1)
            self.handed.append((consumer, delivery))

    @rule(consumer=consumers, count=st.integers(1, 3))
    def reclaim(self, consumer: str, count: int) -> None:
        """One inspector takes over what is idle; frames without payload are answered."""
        for delivery in self.stream.reclaim(["cam"], consumer, 0, count):
            assert delivery.deliveries == self.holder[delivery.frame_id][1] + 1
            self.holder[delivery.frame_id] = (consumer, delivery.deliveries)
            self.handed.append((consumer, delivery))
        for frame_id in self.open - set(self.stream.open_ids("cam")):
            assert frame_id in self.payload_gone
            self.close(frame_id, "bad_frame")

    @precondition(lambda self: self.handed)
    @rule(pick=picks, is_bad=st.booleans())
    def answer(self, pick: int, is_bad: bool) -> None:
        """Any delivery ever handed out is answered or quarantined: fresh, stale or repeated."""
        consumer, delivery = self.handed[pick % len(self.handed)]
        is_held = self.is_held(consumer, delivery)
        is_in_time = delivery.frame_id not in self.passed_by
        if is_bad:
            verdict = undecided(self.entry(delivery.frame_id), Reason.BAD_FRAME, 1)
            accepted = self.stream.quarantine(delivery, consumer, verdict)
        else:
            verdict = self.late(delivery.frame_id)
            verdict = verdict.model_copy(update={"decision": Decision.PASS, "reason": None})
            accepted = self.stream.answer(delivery, consumer, verdict)
        assert accepted == (is_held and (is_bad or is_in_time))
        if accepted:
            self.close(delivery.frame_id, "bad_frame" if is_bad else "pass")

    @precondition(lambda self: self.handed)
    @rule(pick=picks)
    def renew(self, pick: int) -> None:
        """Only a valid holder whose payload is there keeps its frame."""
        consumer, delivery = self.handed[pick % len(self.handed)]
        is_whole = delivery.frame_id not in self.payload_gone
        held = self.stream.renew(consumer, [delivery])
        assert bool(held) == (self.is_held(consumer, delivery) and is_whole)
        if not held and self.is_held(consumer, delivery):
            del self.holder[delivery.frame_id]  # struck off; the gate keeper has it now

    @precondition(lambda self: self.admitted > 0)
    @rule(pick=picks)
    def gate(self, pick: int) -> None:
        """The gate keeper answers a frame, if it is not too late for that."""
        frame_id = f"cam/7-{pick % self.admitted + 1}"
        assert self.stream.answer_open(self.late(frame_id)) == (frame_id in self.open)
        if frame_id in self.open:
            self.close(frame_id, "deadline")

    @precondition(lambda self: self.open)
    @rule(pick=picks)
    def lose_payload(self, pick: int) -> None:
        """Someone deletes an entry of the frames stream."""
        frame_id = sorted(self.open)[pick % len(self.open)]
        key = f"{self.stream.namespace}:{{cam}}:frames"
        self.stream._commands.xdel(key, frame_id.partition("/")[2])
        self.payload_gone.add(frame_id)

    @invariant()
    def every_frame_has_one_verdict_or_is_open(self) -> None:
        """captured = verdicts + open; no frame has two; the backlog is what is open and whole."""
        ledger = self.stream.ledger("cam")
        answered = [d.verdict.frame_id for d in self.stream.follow_verdicts("cam", "0", 100)]
        assert len(answered) == len(set(answered)) == sum(self.counts.values())
        assert ledger.captured == self.admitted == len(answered) + ledger.open
        assert ledger.residual == ledger.open == len(self.open)
        assert set(self.stream.open_ids("cam")) == self.open
        assert set(answered).isdisjoint(self.open)
        assert {"pass": ledger.passed, **ledger.undecided} == {"pass": 0, **self.counts}
        assert self.stream.backlog("cam") == len(self.open - self.payload_gone)


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_one_verdict_per_frame_in_any_order_of_events(redis_url: str) -> None:
    """Whatever is repeated, late, stolen or lost: one verdict per frame, a balanced ledger."""
    Deliveries.url = redis_url
    run_state_machine_as_test(
        Deliveries,
        settings=settings(
            max_examples=120,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


class Agreement(RuleBasedStateMachine):
    """The protocol that was explored exhaustively, action by action on a real server."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        namespace = f"agree-{uuid.uuid4().hex[:12]}"
        self.line = Acting(self.stack.enter_context(open_stream(self.url, namespace)))
        self.state = begin(4)

    def teardown(self) -> None:
        """Let the server go."""
        self.stack.close()

    @rule(pick=picks)
    def act(self, pick: int) -> None:
        """Anything that the model allows; the rarer a loss, the further a run gets."""
        possible = [step for step in steps(self.state) if not self.is_uncounted(step[0])]
        rare = {"lose_server", "crash_camera", "crash_worker", "lose_request", "gate"}
        names = sorted({action.name for action, _ in possible} - (rare if pick % 5 else set()))
        name = names[pick // 5 % len(names)] if names else possible[0][0].name
        chosen = [step for step in possible if step[0].name == name]
        action, after = chosen[pick // 100 % len(chosen)]
        note(str(action))
        self.line.do(action, self.state, after)
        self.state = after

    def is_uncounted(self, action: Action) -> bool:
        """The model stops counting deliveries, the server does not."""
        return action.name == "reclaim" and self.state.frames[action.frame].tries == TRIES_SEEN

    @invariant()
    def model_and_server_agree(self) -> None:
        """Open, pending with their tokens, verdicts, ledger: the same on both sides."""
        assert self.line.seen() == self.line.expected(self.state)


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_model_and_server_agree_after_every_action(redis_url: str) -> None:
    """What the explorer proves of the model is so of the scripts, as far as runs can tell."""
    Agreement.url = redis_url
    run_state_machine_as_test(
        Agreement,
        settings=settings(
            max_examples=60,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
