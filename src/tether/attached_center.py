"""Rounds with a center: each process exchanges with it whenever it has taken its steps, and meets nobody.

**Checkpoints.** A process saves its own part when it calls `save`, the first process also the center, between two
messages. These moments differ, so the center's part may lack messages that a worker had sent by its own, or hold ones
that it had not sent yet. Both count them, and compare when they go on:

- The same number: the worker goes on as it was, bit for bit, a reply on its way included.
- Another number: what the worker remembers of the center (what `Downpour` received last) is of a center that is no
  more. Its next change would be added twice, or to a model it was not made from. It goes on from the center's model,
  with its own optimizer, random numbers and values. A worker that remembers nothing (`AsynchronousEASGD` pulls any
  model toward any anchor) keeps its own parameters.

A worker without a part of its own, as where there are more workers than before, goes on from the center's model with
the first worker's optimizer and values, if it finds them. Where the center has no checkpoint, everyone begins anew.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tether import random_state
from tether.attached import Attached, Keep
from tether.checkpoint import Checkpoints, Saved
from tether.trees import Tree
from tether.workers import Stacked
from tether.workers.center_client import CenterClient, Joined, Model

log = logging.getLogger(__name__)


class AttachedToCenter(Attached):
    """Rounds in which each process exchanges with a center by itself.

    Args:
        client: reaches the center.
        arguments, options: of `Attached`.
    """

    def __init__(self, client: CenterClient, *arguments: Any, **options: Any):
        self._client = client
        super().__init__(*arguments, **options)

    def state_dict(self) -> dict[str, Tree]:
        """See `Attached.state_dict`. In the first process with the center."""
        rounds = self.rounds.state_dict()
        sent = self.workers.messages, self.workers.bytes
        return rounds | {"sent": sent, "center": self._client.state_dict()}

    def load_state_dict(self, saved: dict[str, Tree]) -> None:
        """See `Attached.load_state_dict`. Every process calls it; the others wait for the first one's."""
        self._go_on(self._join(saved), saved, own=True)

    def save(self, values: Mapping[str, Tree] | None = None) -> None:
        """See `Attached.save`."""
        if not self._open:
            raise RuntimeError("these rounds are closed: evaluate and save before rounds.close()")
        self._values = dict(values or {})
        self._part_of(self._client.rows.start).save(self.count, self._state(), Stacked(1), self._device)

    def load(self) -> dict[str, Tree]:
        """See `Attached.load` and this module."""
        me = self._client.rows.start
        mine = self._found(me)
        saved = mine or (self._found(0) if me else None)
        part = saved.parts[0] if saved is not None else {}
        joined = self._join(part["rounds"] if mine else None)
        if joined.anew:
            if saved is not None:
                log.warning(
                    "the center has no checkpoint: that of worker %d after %d steps is not used", me, saved.step
                )
            return {}
        if saved is not None:
            self._model.load_state_dict(part["model"])
            self._optimizer.load_state_dict(part["optimizer"])
            self._values = part["values"]
        self._go_on(joined, part.get("rounds"), own=mine is not None)
        if mine is not None:
            random_state.restore(part["random"], self._device)
        return dict(self._values)

    def _join(self, mine: dict[str, Any] | None) -> Joined:
        """Learn of the center what this worker, which goes on from this `state_dict` or from none, has to know."""
        center = mine["center"] if mine is not None else None
        if self._log is not None and center is not None:
            self._log.resume(center["center"]["served"], exact=False)  # before anyone else's next message
        (joined,) = self._client.join(mine["rounds"] if mine is not None else None, center)
        return joined

    def _go_on(self, joined: Joined, saved: dict[str, Any] | None, own: bool) -> None:
        """Go on with the center from what was saved, by this worker or another; the model is what it was then."""
        if saved is not None and own:
            self.workers.messages, self.workers.bytes = saved["sent"]
        if joined.same and saved is not None:
            self.rounds.load_state_dict(saved)
            return
        if not own:
            self._be(self._rows(joined.model))
        elif any(self.rounds.states):
            self._replicas.x.copy_(joined.model.x)
        self.rounds.restart(saved or self.rounds.state_dict())
        log.warning("worker %d goes on after %d local steps beside another center", self._client.rows.start, self.count)

    def _found(self, worker: int) -> Saved | None:
        saved = self._part_of(worker).load(Stacked(1), self._device)
        if saved is not None:
            saved.check_is_of(self._kind)
        return saved

    def _part_of(self, worker: int) -> Checkpoints:
        where = self._where()
        return Checkpoints(where.folder / f"worker-{worker}", where.keep)

    def _center(self) -> list[Tensor]:
        return self._rows(self._client.center())

    def _close(self, keep: Keep) -> list[Tensor] | None:
        self.rounds.close()
        model = self._client.close(with_model=keep == "center")
        return self._rows(model) if model is not None else None

    def _rows(self, model: Model) -> list[Tensor]:
        return [model.x, *model.beside.values()]
