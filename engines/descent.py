"""Gradient descent on any loss: one plain loop that survives a kill.

AdamW, an exponential moving average of the weights (what is kept in the end), warm-up and cosine
decay over the share of the budget that is spent, whichever of steps and minutes is nearer. A run
writes a checkpoint every half minute; resumed after a kill it continues bit for bit in f32 on the
same machine, as long as steps bound it (minutes differ from run to run).

Half precision: on a CPU with avx512_bf16 but without AMX, autocast made a step of the tiny denoiser
6 to 18 % faster (0.34 to 0.40 s against 0.42 s at batch 16, one core) and one of the lean VAE 1.3
times, which is not worth the rounding; so by itself bf16 is taken on GPUs and on AMX only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from engines.checkpoint import (
    pack_optimizer,
    part_of,
    read_tensors,
    under,
    unpack_optimizer,
    write_tensors,
)
from engines.contracts import BadData, EngineFault

CHECKPOINT, LOSSES = "checkpoint.safetensors", "losses.csv"
LOSS_COLUMNS = "step,loss,learning_rate,elapsed_s"
WARM_UP = 0.05  # share of the budget
GRADIENT_NORM_MAX = 1.0
Loss = Callable[[torch.Generator], Tensor]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train; ``steps`` or ``minutes``, whichever comes first, ends it."""

    steps: int = 100_000
    minutes: float = math.inf
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    ema: float = 0.999
    seed: int = 0
    precision: Literal["auto", "f32", "bf16"] = "auto"
    log_every: int = 10  # steps per row of losses.csv and per call of ``progress``
    checkpoint_s: float = 30.0
    snapshots: int = 0  # weights kept along the way, evenly over the budget

    def learning_rate_at(self, share: float) -> float:
        """Linear warm-up, then cosine to zero, over the share of the budget that is spent."""
        if share < WARM_UP:
            return self.learning_rate * (share + 1e-3) / (WARM_UP + 1e-3)
        decayed = (share - WARM_UP) / (1 - WARM_UP)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * decayed))


@dataclass(frozen=True, slots=True)
class Training:
    """Where a run stands; what ``progress`` is told and what a fit returns."""

    step: int
    share: float  # of the budget, in [0, 1]
    loss: float  # mean since the last report
    learning_rate: float
    elapsed_s: float


Progress = Callable[[Training], None]


def silent(_: Training) -> None:
    """Nobody watches."""


class Run:
    """State of one training run; everything that must survive a kill."""

    def __init__(self, network: nn.Module, schedule: Schedule, folder: Path) -> None:
        self.network, self.schedule, self.folder = network, schedule, folder
        self.device = next(network.parameters()).device
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self.generator = torch.Generator().manual_seed(schedule.seed)
        self.is_half = is_half_worthwhile(schedule.precision, self.device)
        self.step, self.elapsed_s = 0, 0.0

    def share(self) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        minutes = self.elapsed_s / 60 / self.schedule.minutes
        return min(1.0, max(self.step / self.schedule.steps, minutes))

    def advance(self, loss_of: Loss) -> float:
        """One optimiser step; returns the loss. Raises EngineFault when it is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate_at(self.share())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_half):
            loss = loss_of(self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        value = loss.item()
        if not math.isfinite(value):
            raise EngineFault(
                f"training diverged at step {self.step}; lower the learning rate and resume"
            )
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM_MAX)
        self.optimizer.step()
        self.step += 1
        self._follow()
        return value

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the weights; quickly at first, so that it forgets the start."""
        keep = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        for name, weight in self.network.state_dict().items():
            if weight.is_floating_point():
                self.average[name].lerp_(weight, 1 - keep)
            else:
                self.average[name].copy_(weight)

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        tensors = under("weights", dict(self.network.state_dict())) | under("average", self.average)
        tensors |= under("optimizer", pack_optimizer(self.optimizer))
        tensors |= {
            "random.batches": self.generator.get_state(),
            "random.layers": torch.get_rng_state(),
        }
        facts = {"step": self.step, "elapsed_s": self.elapsed_s, "seed": self.schedule.seed}
        write_tensors(self.folder / CHECKPOINT, tensors, facts)

    def load(self) -> None:
        """Continue from the checkpoint. Raises BadData when it is of another network or seed."""
        path = self.folder / CHECKPOINT
        tensors, facts = read_tensors(path)
        if facts["seed"] != self.schedule.seed:
            raise BadData(f"{path} was started with seed {facts['seed']}; use it or train anew")
        try:
            self.network.load_state_dict(part_of(tensors, "weights"))
        except RuntimeError as error:
            raise BadData(f"{path} is of another network; train without --resume") from error
        for name, value in part_of(tensors, "average").items():
            self.average[name].copy_(value)
        unpack_optimizer(self.optimizer, part_of(tensors, "optimizer"))
        self.generator.set_state(tensors["random.batches"].cpu())
        torch.set_rng_state(tensors["random.layers"].cpu())
        self.step, self.elapsed_s = int(facts["step"]), float(facts["elapsed_s"])

    def keep_snapshot(self) -> None:
        """The averaged weights of this step, for a learning curve."""
        path = self.folder / "snapshots" / f"step_{self.step:06d}.safetensors"
        write_tensors(path, self.average, {"step": self.step, "elapsed_s": self.elapsed_s})


def is_half_worthwhile(precision: str, device: torch.device) -> bool:
    """bf16 when asked for, or by itself where matrix units make it pay."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_amx_tile_supported())


def train(
    network: nn.Module,
    loss_of: Loss,
    schedule: Schedule,
    folder: Path,
    *,
    prepare: Callable[[], object] = lambda: None,
    resume: bool = False,
    progress: Progress = silent,
    clock: Clock = time.monotonic,
) -> Training:
    """Minimise ``loss_of`` over the weights of ``network``; leaves it with the averaged weights.

    ``prepare`` makes what the loss reads, before the clock starts, unless a finished run is
    resumed. ``resume`` continues a checkpoint in ``folder`` when there is one. The random state of
    the calling program is untouched.
    """
    is_resumed = resume and (folder / CHECKPOINT).exists()
    if not is_resumed:
        prepare()
    with torch.random.fork_rng():
        torch.manual_seed(schedule.seed)  # dropout draws from here
        run = Run(network, schedule, folder)
        if is_resumed:
            run.load()
            if run.share() < 1:
                prepare()
        network.train()
        reached = _loop(run, loss_of, progress, clock)
    network.load_state_dict(run.average)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network.eval()
    return reached


def _loop(run: Run, loss_of: Loss, progress: Progress, clock: Clock) -> Training:
    schedule, journal = run.schedule, LossJournal(run.folder / LOSSES, run.step)
    started = clock() - run.elapsed_s
    saved_s, losses, reached = run.elapsed_s, list[float](), _standing(run, [])
    while (share := run.share()) < 1:
        losses.append(run.advance(loss_of))
        run.elapsed_s = clock() - started
        if run.step % schedule.log_every == 0 or run.share() >= 1:
            reached = _standing(run, losses)
            losses = []
            journal.write(reached)
            progress(reached)
        if int(run.share() * schedule.snapshots) > int(share * schedule.snapshots):
            run.keep_snapshot()
        if run.elapsed_s - saved_s >= schedule.checkpoint_s or run.share() >= 1:
            run.save()
            saved_s = run.elapsed_s
    return reached


def _standing(run: Run, losses: list[float]) -> Training:
    mean = math.fsum(losses) / len(losses) if losses else math.nan
    rate = run.schedule.learning_rate_at(run.share())
    return Training(run.step, run.share(), mean, rate, run.elapsed_s)


class LossJournal:
    """losses.csv of a run; what a lost stretch had written is cut off when it is trained again."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = path.read_text("utf-8").splitlines()[1:] if step and path.exists() else []
        kept = [row for row in rows if int(row.split(",")[0]) <= step]
        path.write_text("\n".join([LOSS_COLUMNS, *kept]) + "\n")
        self.path = path

    def write(self, reached: Training) -> None:
        """Append one row."""
        facts = asdict(reached)
        del facts["share"]
        with self.path.open("a") as file:
            file.write(",".join(f"{value:.8g}" for value in facts.values()) + "\n")
