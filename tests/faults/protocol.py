"""The delivery protocol as a small state machine, explored exhaustively.

One camera, two workers, a few frames, and everybody may die at any moment: a worker forgets what it
holds, a request or its reply is lost on the way, the server comes back empty. Idle time is left
out: any worker may take over any pending entry at any time, which includes every order that clocks
could make. ``Rules`` switches single safeguards off; the explorer then has to find what breaks.

``test_protocol_machine`` drives the same actions against the Lua scripts on a real server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

WORKERS = (0, 1)
TRIES = 1  # deliveries after which an entry is quarantined
TRIES_SEEN = TRIES + 2  # deliveries beyond this are not counted
ABSENT, OPEN = "absent", "open"  # on the server; anything else is the ledger's field
PASS, BAD, LATE, RESTART = "pass", "bad_frame", "deadline", "transport_restart"
UNBORN, SENDING, SENT = "unborn", "sending", "sent"  # as its camera's process sees it


class Action(NamedTuple):
    """One step of somebody; printed in a counterexample."""

    name: str
    frame: int = -1
    worker: int = -1

    def __str__(self) -> str:
        words = [self.name]
        words += [f"frame {self.frame}"] if self.frame >= 0 else []
        words += [f"worker {self.worker}"] if self.worker >= 0 else []
        return " ".join(words)


class FrameState(NamedTuple):
    """Where one frame stands: at its camera, on the server, with the workers, at the sink."""

    stage: str = UNBORN
    owed: bool = False  # in the journal
    server: str = ABSENT
    acked: bool = False  # a sink has acknowledged the server's verdict
    holder: int = -1  # worker for whom the entry is pending
    tries: int = 0  # deliveries of the entry
    held: tuple[int, int] = (0, 0)  # the delivery count that each worker remembers; 0 = none
    acted: str = ""  # what the sink did, on its disk
    writes: int = 0  # verdicts in this server's stream


class State(NamedTuple):
    """All of it."""

    frames: tuple[FrameState, ...]
    is_begun: bool = True  # the server has begun the camera's epoch
    resumes: bool = False  # the camera's process noticed a loss
    is_stale: bool = False  # a verdict was taken from a worker that had lost the entry
    is_stubborn: bool = False  # an entry that failed too often was judged all the same


@dataclass(frozen=True, slots=True)
class Rules:
    """The safeguards; each can be switched off to see what it is for."""

    fences: bool = True  # an answer is taken from the holder of the newest delivery only
    answers_once: bool = True  # an answer is taken while the frame is open only
    reclaims: bool = True  # what a dead worker held is taken over
    quarantines: bool = True  # an entry that failed too often is set aside
    guards_epoch: bool = True  # a server that forgot takes no new frame before the old ones
    remembers: bool = True  # the sink knows what it has done


SOUND = Rules()
DONE = FrameState(SENT, server=PASS, acked=True, acted=PASS, writes=1)
Step = tuple[Action, State]


def begin(frames: int) -> State:
    """Nothing exposed yet."""
    return State((FrameState(),) * frames)


def steps(state: State, rules: Rules = SOUND) -> Iterator[Step]:
    """Everything that may happen next."""
    yield from _server_steps(state)
    yield from _camera_steps(state, rules)
    for worker in WORKERS:
        yield from _worker_steps(state, worker, rules)
    for at, frame in enumerate(state.frames):
        yield from _gate_and_sink_steps(state, at, frame, rules)


# -- the server and the camera ---------------------------------------------------------------------


def _server_steps(state: State) -> Iterator[Step]:
    if any(frame.server != ABSENT for frame in state.frames) or state.is_begun:
        forgotten = tuple(
            frame._replace(server=ABSENT, acked=False, holder=-1, tries=0, writes=0)
            for frame in state.frames
        )
        yield Action("lose_server"), state._replace(frames=forgotten, is_begun=False)


def _camera_steps(state: State, rules: Rules) -> Iterator[Step]:
    sending = [at for at, frame in enumerate(state.frames) if frame.stage == SENDING]
    unborn = [at for at, frame in enumerate(state.frames) if frame.stage == UNBORN]
    if unborn and not sending:
        yield Action("expose", unborn[0]), _with(state, unborn[0], stage=SENDING, owed=True)
    if not state.resumes:
        for at in sending:
            yield from _sendings(state, at, rules)
        yield from _settlings(state, bool(sending))
        yield Action("crash_camera"), state._replace(resumes=True)
        return
    missing = [a for a, frame in enumerate(state.frames) if frame.owed and frame.server == ABSENT]
    if missing:
        yield Action("restore", missing[0]), _restored(state, missing[0])
        return
    known = state
    for at in sending:  # on the server already, and its camera knows so by now
        known = _with(known, at, stage=SENT)
    yield Action("begin_epoch"), known._replace(is_begun=True, resumes=False)


def _sendings(state: State, at: int, rules: Rules) -> Iterator[Step]:
    """A frame is sent: it arrives, or the request is lost, or the reply."""
    yield Action("lose_request", at), state._replace(resumes=True)
    if not state.is_begun and rules.guards_epoch:
        yield Action("admit_unbegun", at), state._replace(resumes=True)
        return
    is_new = state.frames[at].server == ABSENT and not _is_repeat(state, at)
    arrived = _with(state, at, server=OPEN) if is_new else state
    yield Action("admit", at), _with(arrived, at, stage=SENT)
    yield Action("lose_reply", at), arrived._replace(resumes=True)


def _is_repeat(state: State, at: int) -> bool:
    """Ids ascend: a server that knows a later frame takes an earlier one for a repeat."""
    return any(frame.server != ABSENT for frame in state.frames[at + 1 :])


def _restored(state: State, at: int) -> State:
    """The camera answers for a frame that the server does not know."""
    if _is_repeat(state, at):
        return _with(state, at, stage=SENT, owed=False)  # taken for a repeat, then struck
    return _with(state, at, stage=SENT, server=RESTART, writes=state.frames[at].writes + 1)


def _settlings(state: State, is_sending: bool) -> Iterator[Step]:
    """The journal forgets what a sink has acted on, and what this server does not know."""
    if not state.is_begun:
        yield Action("notice_loss"), state._replace(resumes=True)
        return
    for at, frame in enumerate(state.frames):
        is_known = frame.server not in (ABSENT, OPEN) and frame.acked
        is_forgotten = frame.server == ABSENT and frame.stage == SENT
        if frame.owed and not is_sending and (is_known or is_forgotten):
            yield Action("settle", at), _with(state, at, owed=False)


# -- workers ---------------------------------------------------------------------------------------


def _worker_steps(state: State, worker: int, rules: Rules) -> Iterator[Step]:
    undelivered = [at for at, f in enumerate(state.frames) if f.server == OPEN and f.holder < 0]
    if undelivered:
        yield Action("read", undelivered[0], worker), _delivered(state, undelivered[0], worker)
    pending = [at for at, f in enumerate(state.frames) if f.holder >= 0]
    for at in pending if rules.reclaims else ():
        yield Action("reclaim", at, worker), _delivered(state, at, worker)
    held = [at for at, f in enumerate(state.frames) if f.held[worker]]
    for at in held:
        yield Action("renew", at, worker), state
        yield from _answers(state, at, worker, rules)
    if held:
        forgotten = tuple(_forget(f, worker) for f in state.frames)
        yield Action("crash_worker", -1, worker), state._replace(frames=forgotten)


def _delivered(state: State, at: int, worker: int) -> State:
    frame = state.frames[at]
    tries = min(frame.tries + 1, TRIES_SEEN)
    other = frame.held[1 - worker]
    other = 1 if other == tries else other  # counted no further, and stale all the same
    held = (tries, other) if worker == 0 else (other, tries)
    return _with(state, at, holder=worker, tries=tries, held=held)


def _forget(frame: FrameState, worker: int) -> FrameState:
    held = (0, frame.held[1]) if worker == 0 else (frame.held[0], 0)
    return frame._replace(held=held)


def holds(frame: FrameState, worker: int) -> bool:
    """Whether the delivery that a worker remembers is the valid one."""
    return frame.holder == worker and frame.tries == frame.held[worker]


def _answers(state: State, at: int, worker: int, rules: Rules) -> Iterator[Step]:
    frame = state.frames[at]
    gives_up = rules.quarantines and frame.held[worker] > TRIES
    name, outcome = ("quarantine", BAD) if gives_up else ("answer", PASS)
    released = state._replace(
        frames=(*state.frames[:at], _forget(frame, worker), *state.frames[at + 1 :])
    )
    is_held = holds(frame, worker)
    is_taken = is_held or not rules.fences
    after = _answered(released, at, outcome, rules) if is_taken else released
    was_written = after.frames[at].writes > frame.writes
    yield (
        Action(name, at, worker),
        after._replace(
            is_stale=state.is_stale or (was_written and not is_held),
            is_stubborn=was_written and outcome == PASS and frame.held[worker] > TRIES,
        ),
    )


def _answered(state: State, at: int, outcome: str, rules: Rules) -> State:
    """The one script: verdict, ledger and deletion."""
    frame = state.frames[at]
    if frame.server == OPEN or (frame.server != ABSENT and not rules.answers_once):
        return _with(
            state, at, server=outcome, acked=False, holder=-1, tries=0, writes=frame.writes + 1
        )
    return state


# -- the gate keeper and the sink ------------------------------------------------------------------


def _gate_and_sink_steps(state: State, at: int, frame: FrameState, rules: Rules) -> Iterator[Step]:
    if frame.server != ABSENT:  # the keeper has seen it open, which may be some time ago
        yield Action("gate", at), _answered(state, at, LATE, rules)
    if frame.server in (ABSENT, OPEN) or frame.acked:
        return
    if not frame.acted or not rules.remembers:
        yield Action("act", at), _with(state, at, acted=frame.acted + frame.server)
    elif frame.acted:
        yield Action("acknowledge", at), _with(state, at, acked=True, server=frame.acted)


def _with(state: State, at: int, **changes: object) -> State:
    changed = state.frames[at]._replace(**changes)  # type: ignore[arg-type]
    return state._replace(frames=(*state.frames[:at], changed, *state.frames[at + 1 :]))


# -- what must hold --------------------------------------------------------------------------------


def _never_lost(state: State) -> bool:
    """An exposed frame is owed by its camera, or a sink has acted on it."""
    return all(f.stage == UNBORN or f.owed or f.acted for f in state.frames)


def _never_twice(state: State) -> bool:
    """One verdict in a server's stream, and one effect at the sink."""
    return all(f.writes <= 1 and f.acted in ("", PASS, BAD, LATE, RESTART) for f in state.frames)


def _never_stale(state: State) -> bool:
    """No verdict stands of a worker that had lost the entry."""
    return not state.is_stale


def _never_stubborn(state: State) -> bool:
    """What failed too often is set aside, not tried for ever."""
    return not state.is_stubborn


def _ledger_agrees(state: State) -> bool:
    """What a sink has acknowledged, the ledger counts as what it did."""
    return all(not f.acked or f.server == f.acted for f in state.frames)


INVARIANTS: dict[str, Callable[[State], bool]] = {
    "no frame is lost": _never_lost,
    "no frame has two verdicts": _never_twice,
    "no stale verdict stands": _never_stale,
    "no entry is tried for ever": _never_stubborn,
    "the ledger agrees with the sink": _ledger_agrees,
}


@dataclass(frozen=True, slots=True)
class Explored:
    """What the explorer saw; ``broken`` is empty where every invariant holds in every state."""

    states: int
    transitions: int
    broken: str = ""
    trace: tuple[Action, ...] = ()

    def told(self) -> str:
        """The counterexample, step by step."""
        lines = [f"{at + 1:3d}  {action}" for at, action in enumerate(self.trace)]
        return "\n".join([f"broken: {self.broken}", *lines])


FAULTS = {"lose_server", "crash_camera", "crash_worker", "lose_request", "lose_reply"}
# Who may be gone for good while every frame still comes to its end, once nothing else goes wrong.
ABSENTEES = {
    "workers answer without the gate keeper": {"gate"},
    "the gate keeper answers without workers": {"read", "reclaim", "answer", "quarantine"},
}


def explore(frames: int, rules: Rules = SOUND) -> Explored:
    """Breadth first through every state; the first counterexample is a shortest one."""
    first = begin(frames)
    came: dict[State, Step | None] = {first: None}
    edges: list[tuple[State, str, State]] = []
    waiting = deque([first])
    while waiting:
        state = waiting.popleft()
        for action, reached in steps(state, rules):
            after = _alike(reached)
            edges.append((state, action.name, after))
            if after in came:
                continue
            came[after] = (action, state)
            broken = [name for name, is_kept in INVARIANTS.items() if not is_kept(after)]
            if broken:
                return Explored(len(came), len(edges), broken[0], _trace(came, after))
            waiting.append(after)
    for name, absent in ABSENTEES.items():
        stuck = _stuck(came, [(s, t) for s, action, t in edges if action not in absent | FAULTS])
        if stuck is not None:
            return Explored(len(came), len(edges), name, _trace(came, stuck))
    return Explored(len(came), len(edges))


def _stuck(came: Iterable[State], edges: Iterable[tuple[State, State]]) -> State | None:
    """The first state from which no path leads to the end of every frame."""
    before: dict[State, list[State]] = {}
    for state, after in edges:
        before.setdefault(after, []).append(state)
    can_end = {s for s in came if all(f.acted and not f.owed for f in s.frames)}
    waiting = deque(can_end)
    while waiting:
        for state in before.get(waiting.popleft(), ()):
            if state not in can_end:
                can_end.add(state)
                waiting.append(state)
    return next((state for state in came if state not in can_end), None)


def _alike(state: State) -> State:
    """One state for all that behave alike, so that three frames can be explored.

    The workers differ in name only; an old delivery count is as good as any other; a frame that its
    camera, its server and its sink are done with changes no more; why a part is UNDECIDED changes
    nothing.
    """
    frames = tuple(map(_plain, state.frames))
    return state._replace(frames=min(frames, tuple(map(_exchanged, frames))))


@cache
def _exchanged(frame: FrameState) -> FrameState:
    """With the one worker in the place of the other."""
    holder = frame.holder if frame.holder < 0 else 1 - frame.holder
    return frame._replace(held=(frame.held[1], frame.held[0]), holder=holder)


@cache
def _plain(frame: FrameState) -> FrameState:
    if frame.acked and not frame.owed and frame.server == frame.acted and frame.writes == 1:
        return DONE
    valid = frame.tries if frame.holder >= 0 else -1
    held = tuple(min(1, count) if count != valid else count for count in frame.held)
    told = {LATE: LATE, BAD: LATE, RESTART: LATE}
    return frame._replace(
        held=held,
        server=told.get(frame.server, frame.server),
        acted=told.get(frame.acted, frame.acted),
    )


def _trace(came: dict[State, Step | None], state: State) -> tuple[Action, ...]:
    actions: list[Action] = []
    while (step := came[state]) is not None:
        action, state = step
        actions.append(action)
    return tuple(reversed(actions))
