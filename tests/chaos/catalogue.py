"""All stories, by name."""

import tales
import tales_beyond
from tales import Tale

_TOLD = (
    tales.Forward(),
    tales.Back(),
    tales.ThereAndBack(),
    tales.BackAndForth(),
    tales.Rejected(),
    tales.Gate(),
    tales.Queue(),
    tales.Deleted(),
    tales.Approved(),
    tales.Reborn(),
    tales.Suspended(),
    tales.Moved(),
    tales_beyond.Tested(),
    tales_beyond.TestedWorse(),
    tales_beyond.TestedNothing(),
    tales_beyond.Routed(),
    tales_beyond.RoutedBack(),
    tales_beyond.Counted(),
    tales_beyond.CountedBack(),
    tales_beyond.InPlace(),
    tales_beyond.InPlaceBack(),
    tales_beyond.GivenBack(),
    tales_beyond.Proposed(),
    tales_beyond.ProposedBack(),
)
TALES: dict[str, Tale] = {tale.name: tale for tale in _TOLD}
