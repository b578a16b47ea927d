"""Which node comes first: ranks that are neighbours shall be near one another.

The launcher gives each node of Ray two labels; bundles of a placement group are then
counted by them, as Ray itself puts bundles on nodes in no order. Pure: knows no Ray.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

PLACE = "nemo_rl/place"
"""Label: the node's place in the job, from 0."""
SWITCH = "nemo_rl/switch"
"""Label: the switches above the node, from the top one down; absent if unknown."""
_MOST_LETTERS = 63


def labels(place: int, switch: str = "") -> dict[str, str]:
    """Return the labels of a node.

    Args:
        place: its place in the job, from 0.
        switch: names of the switches above it, joined by dots; "" if unknown.
    """
    found = {PLACE: str(place)}
    # What Ray accepts; of a long name its end tells most.
    text = re.sub(r"[^A-Za-z0-9._-]", "-", switch)[-_MOST_LETTERS:].strip("._-")
    return found | ({SWITCH: text} if text else {})


def order(nodes: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the order in which to count bundles: switch by switch, then by place.

    Args:
        nodes: for each bundle the labels of its node. Where one has no place, as in a
            Ray that others started, the order stays.
    """
    if not all(node.get(PLACE, "").isdigit() for node in nodes):
        return list(range(len(nodes)))
    # A switch comes where the first of its nodes in the job's list does.
    first: dict[str, int] = {}
    for node in nodes:
        name, place = node.get(SWITCH, ""), int(node[PLACE])
        first[name] = min(place, first.get(name, place))
    return sorted(
        range(len(nodes)),
        key=lambda n: (first[nodes[n].get(SWITCH, "")], int(nodes[n][PLACE])),
    )
