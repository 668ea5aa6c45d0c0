"""Masks found within the training of the reduced network itself: ours.

SNL (`snl`) trains a slope for every ReLU under a Lasso penalty, rounds the slopes, and fine-tunes. As published the two
are trainings of their own, each with a learning rate that falls to zero. Here they are the first part and the rest of
one schedule: the learning rate does not end where the masks are found, it is still near its peak. So the weights that
are to do without their ReLUs have not settled when they lose them, and most of the epochs train the network as it will
be. The masks are ready after about a quarter of the schedule; what is left of the search trains on with them. At the
end of the search the momentum starts anew, and the order of the images.

Slopes and penalty are those of `snl`. Two things differ. Layers that would keep few ReLUs keep none, because each
costs a round trip in private inference: see `choose_in_few_layers`. And what takes the place of a removed ReLU is not
the identity everywhere: see `lines`.
"""

from __future__ import annotations

from typing import ClassVar

from ..masks import Mask
from .selection import choose_in_few_layers
from .snl import SNL


class DeepReDuceMasks(SNL):
    """Train a slope for every ReLU under a Lasso penalty, at the beginning of the schedule that trains the network."""

    one_schedule: ClassVar[bool] = True
    draws_lines: ClassVar[bool] = True
    limits_layers: ClassVar[bool] = True

    def masks(self) -> dict[str, Mask]:
        """Keep the largest slopes, in few layers; see `SNL.masks`."""
        order = self.order
        return choose_in_few_layers(self.scores(), order.budget, order.granularity, most_layers=order.most_layers)
