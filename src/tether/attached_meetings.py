"""Rounds at which processes meet: how they agree on what they do together, and what they save."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tether import random_state
from tether.attached import Attached, Keep
from tether.rounds import Companion
from tether.trees import Tree, mean_of
from tether.workers import Pending

log = logging.getLogger(__name__)

# What a process is about to do, when processes meet; a round is the number of its part added to the last.
CLOSE, CENTER, SAVE, ROUND = 0, 1, 2, 3


@dataclass(frozen=True)
class Meeting:
    """What every process is about to do, and how far it is; each says so before it communicates."""

    intents: Int[Tensor, " processes"]
    counts: Int[Tensor, " processes"]

    @classmethod
    def of(cls, said: Int[Tensor, " numbers"]) -> Meeting:
        """What processes have said: two numbers each."""
        intents, counts = said.cpu().view(-1, 2).T
        return cls(intents, counts)

    @property
    def round(self) -> int | None:
        """The part of the method whose round some process starts; then it is everyone's."""
        return self.first - ROUND if self.first >= ROUND else None

    @property
    def first(self) -> int:
        """What is done first, by everyone: the others then do that too."""
        return int(self.intents.max())

    @property
    def closing(self) -> Tensor:
        """The processes whose data has ended."""
        return (self.intents == CLOSE).nonzero().flatten()


class AttachedByMeetings(Attached):
    """Rounds in which all processes take part.

    Before each round, and in `center`, `save` and `close`, processes say what they are about to do. A process that does
    something else than start a round takes part in a round that others start, so all take part in the same ones, in
    the same order, and nobody waits for ever: not for a process that has skipped a step, and not for one whose data has
    ended. Such a one takes part with its parameters once more, then with a weight of zero until all have closed.
    """

    def __init__(self, *arguments: Any, **options: Any):
        self._met: Pending | None = None
        self._said_at = 0.0
        self._all_have_moments = False
        super().__init__(*arguments, **options)

    def state_dict(self) -> dict[str, Tree]:
        """See `Attached.state_dict`."""
        sent = self.workers.messages, self.workers.bytes
        present = self._ranks.present.clone()
        return self.rounds.state_dict() | {"present": present, "sent": sent, "moments": self._all_have_moments}

    def load_state_dict(self, saved: dict[str, Tree]) -> None:
        """See `Attached.load_state_dict`."""
        self.rounds.load_state_dict(saved)
        self._ranks.present.copy_(saved["present"])
        self.workers.messages, self.workers.bytes = saved["sent"]
        self._all_have_moments = saved["moments"]

    def save(self, values: Mapping[str, Tree] | None = None) -> None:
        """See `Attached.save`."""
        self._values = dict(values or {})
        self._where()
        self._meet(SAVE)
        self._write()

    def load(self) -> dict[str, Tree]:
        """See `Attached.load`."""
        saved = self._where().load(self._ranks, self._device)
        if saved is None:
            return {}
        saved.check_is_of(self._kind)
        part = saved.parts[0]
        if not saved.same:
            log.warning("going on after %d local steps from the mean of %d workers", saved.step, len(saved.parts))
            present = part["rounds"]["present"].double().tolist()
            of_all = {name: [each[name] for each in saved.parts] for name in ("model", "optimizer")}
            part = part | {name: mean_of(trees, present) for name, trees in of_all.items()}
        self._model.load_state_dict(part["model"])
        self._optimizer.load_state_dict(part["optimizer"])
        self._values = part["values"]
        if saved.same:
            self.load_state_dict(part["rounds"])
            random_state.restore(part["random"], self._device)
        else:
            self.rounds.restart(part["rounds"])
        if self._log is not None:
            self._log.resume(sum(self.rounds.rounds), exact=saved.same)
        return dict(self._values)

    def _write(self) -> None:
        self.rounds.check_replicated(self._ranks)
        # Whoever has skipped a step has counted fewer.
        counts = self._ranks.gather(torch.full((1,), float(self.count), dtype=torch.float64, device=self._device))
        self._where().save(int(counts.max()), self._state(), self._ranks, self._device)

    def _center(self) -> list[Tensor]:
        self._meet(CENTER)
        return self._means()

    def _close(self, keep: Keep) -> list[Tensor] | None:
        self._meet(CLOSE)
        self.rounds.close()
        self.rounds.check_replicated(self._ranks)
        return self._means() if keep == "center" else None

    def _means(self) -> list[Tensor]:
        return [mean.wait() for mean in [self.workers.mean(matrix) for matrix in self._matrices()]]

    def _round(self, part: int) -> None:
        self._say(ROUND + part)
        self._send(part)

    def _send(self, part: int, join: bool = False) -> None:
        """Start a round, or join one."""
        if self._optimizer_state == "average" and not self._all_have_moments:
            # Moments come to be with the first step, which a process may have skipped.
            mine = torch.full_like(self._replicas.x[:, 0], float(bool(self._moments())))
            self._all_have_moments = bool(self._ranks.gather(mine).all())
        (self.rounds.join if join else self.rounds.send)(part, self._lr)

    def _say(self, intent: int) -> Pending:
        """Tell the others what this process is about to do. First heed what was said last: it is of a round landed."""
        if self._met is not None:
            self._heed(self._met)
        self._said_at = self._seconds
        mine = torch.tensor([intent, self.count], device=self._device)
        self._met = self._ranks.gather_async(mine)
        return self._met

    @property
    def _seconds(self) -> float:
        return 0.0 if self._log is None else self._log.seconds

    def _heed(self, met: Pending) -> Meeting:
        """Hear what everyone was about to do; those whose data has ended count no more from now on."""
        meeting = Meeting.of(met.wait())
        self._met = None
        if meeting.round is not None and self._log is not None:
            self._log.round(meeting.round, meeting.counts.tolist(), meeting.closing.tolist(), self._said_at)
        if meeting.first != CLOSE:
            for process in meeting.closing.tolist():
                self._ranks.present[process] = False
        return meeting

    def _meet(self, intent: int) -> None:
        """Take part in what others do until everyone is where this process is, or has closed."""
        if not self._open and intent != CLOSE:
            raise RuntimeError("these rounds are closed: evaluate and save before rounds.close()")
        while True:
            met = self._say(intent)
            meeting = Meeting.of(met.wait())
            if meeting.round is not None:
                self._said_at = self._seconds
                self._send(meeting.round, join=True)
            self._heed(met)
            if meeting.first == intent:
                return
            if meeting.first == SAVE:
                self._write()
            elif meeting.first == CENTER:
                self._means()

    def _companions(self) -> dict[str, Companion]:
        companions: dict[str, Companion] = {}
        if self._average_buffers:
            for name, matrix in self._replicas.averaged_buffers().items():
                companions[f"buffer {name}"] = Companion([matrix])
        if self._all_have_moments:
            for name, moments in self._moments().items():
                companions[f"optimizer {name}"] = Companion(moments, dim=1)
        return companions

    def _moments(self) -> dict[str, list[Tensor]]:
        """The optimizer's state but what is one number a tensor, such as counts of steps; by name, as rows `[1, n]`."""
        moments: dict[str, list[Tensor]] = {}
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                for name, value in self._optimizer.state.get(p, {}).items():
                    if isinstance(value, Tensor) and (value.dim() or not p.dim()):
                        moments.setdefault(name, []).append(value.view(1, -1))
        return moments
