"""What is told of a trial after each of its epochs."""

from __future__ import annotations

from collections import defaultdict

from ..errors import StoreUnreachable
from .claim import Claim
from .patience import Patient


class Reports:
    """Values that are told, late where the storage is away, and what the pruner says to them."""

    def __init__(self, storage: Patient) -> None:
        self._storage = storage
        self._late: defaultdict[int, dict[int, float]] = defaultdict(dict)
        """By trial and epoch."""
        self._last: dict[int, int] = {}
        """The last epoch that was told, by trial."""

    def tell(self, claim: Claim, epoch: int, value: float, ended: bool) -> bool:
        """Tell a value; whether to stop, which a storage that is away does not say.

        What is told again is answered as it was: training went on after all but the last one.
        """
        number, told = claim.number, claim.row
        last = self._last.setdefault(number, max(told.epochs, default=-1))
        if epoch < last:
            return False
        if told.state != "running":
            return told.state == "pruned"
        self._last[number] = epoch
        if epoch > last:
            self._late[number][epoch] = value
        try:
            with self._storage.at_once():
                self.catch_up(claim)
                return not ended and self._decide(claim, epoch)
        except StoreUnreachable:
            return False

    def catch_up(self, claim: Claim) -> None:
        """Tell what could not be told yet."""
        late = self._late[claim.number]
        for epoch, value in sorted(late.items()):
            claim.trial.report(value, epoch + 1)  # pruners count the epochs that are done
            del late[epoch]

    def forget(self, number: int) -> None:
        """There is nothing more to tell of this trial."""
        self._late.pop(number, None)
        self._last.pop(number, None)

    def _decide(self, claim: Claim, epoch: int) -> bool:
        """Ask the pruner, once for an epoch.

        Successive halving notes what it decides, and a second time it would decide otherwise.
        So its notes are made when the decision itself is safe.
        """
        decided = claim.row.attributes.get("decided", {})
        if decided.get("epoch") != epoch:
            with self._storage.held() as notes:
                stop = claim.trial.should_prune()
            decided = {"epoch": epoch, "stop": stop, "notes": notes}
            if notes:
                claim.trial.set_user_attr("decided", decided)
        for key, value in decided["notes"].items():
            self._storage.set_trial_system_attr(claim.trial._trial_id, key, value)
        return decided["stop"]
