"""Name the licence of a backbone's published weights, and what it forbids or demands.

timm knows the licence of each of its weights. What it means here is no legal advice: it tells which
licences a person has to read before a model is used.
"""

from __future__ import annotations

from dataclasses import dataclass

from spaces.timm_names import PREFIX, load_timm
from trainables.pretrained.weight_files import FROM_SCRATCH
from trainables.pretrained.weights import PACKAGED

UNKNOWN = "unknown"

NON_COMMERCIAL = "non-commercial"
"""The weights, and models made from them, are not for commercial use."""

OWN_TERMS = "own licence"
"""The weights have a licence of their own, with conditions on their use."""

_FREE = frozenset(("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"))
_NON_COMMERCIAL = frozenset(
    ("cc-by-nc-4.0", "fair-noncommercial-research-license", "seer-license", "apple-amlr")
)


@dataclass(frozen=True)
class Licence:
    """The licence of some weights.

    Attributes:
        name: Its name, as the hub has it, such as "apache-2.0"; "unknown" where it is not known,
            and "" where there are no published weights.
        restriction: `NON_COMMERCIAL`, `OWN_TERMS`, or "" where it allows all uses or is not known.
    """

    name: str
    restriction: str = ""

    def warning(self, backbone: str) -> str | None:
        """Return a warning for who searches the backbone; None where there is nothing to say."""
        if self.restriction == NON_COMMERCIAL:
            return f"the weights of {backbone} are not for commercial use ({self.name})"
        if self.restriction == OWN_TERMS:
            return (
                f"the weights of {backbone} have a licence of their own ({self.name}): read it"
                " before you use the model"
            )
        return None


def weights_licence(backbone: str) -> Licence:
    """Return the licence of a backbone's published weights.

    Args:
        backbone: Its name; that of a user's own function has no published weights.
    """
    if backbone in FROM_SCRATCH or ":" in backbone:
        return Licence("")
    if backbone in PACKAGED:
        return Licence("apache-2.0")  # of this package
    if not backbone.startswith(PREFIX):
        # torchvision's code and weights; timm names the same for its copies of them (tv_in1k).
        return Licence("bsd-3-clause")
    try:
        published = load_timm().get_pretrained_cfg(backbone.removeprefix(PREFIX))
    except RuntimeError:  # there is no such tag
        published = None
    return licence_named(published.license if published else None)


def licence_named(name: str | None) -> Licence:
    """Return a licence by its name; None or "" stands for an unknown one."""
    if name in (None, "", UNKNOWN):
        return Licence(UNKNOWN)
    if name in _NON_COMMERCIAL:
        return Licence(str(name), NON_COMMERCIAL)
    return Licence(str(name), "" if name in _FREE else OWN_TERMS)
