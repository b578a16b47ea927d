"""What a submission is made of, as data: printed by --dry-run, kept in launch.json.

No value of a variable whose name speaks of a secret is in it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import nemo_rl
from nemo_rl.launch.container import image_file, image_of
from nemo_rl.launch.images import recorded
from nemo_rl.launch.record import git_state
from nemo_rl.launch.request import Prepared
from nemo_rl.launch.slurm_text import seconds_of
from nemo_rl.utils.files import sha256_of
from nemo_rl.utils.secrets import masked_overrides, masked_variables


def make_manifest(prepared: Prepared) -> dict[str, Any]:
    """Return what will be submitted: sizes, cost, code, recipe, image, site."""
    spec, cluster = prepared.specs[0], prepared.config.cluster
    commit, modified = git_state(prepared.root)
    runs = max(1, len(prepared.groups))
    jobs = runs * (1 + prepared.chain)
    nodes = cluster.num_nodes + cluster.spare_nodes
    node_hours = jobs * nodes * _hours(cluster.time)
    if len(prepared.specs) > 1:
        node_hours = sum(each.nodes * _hours(each.time) for each in prepared.specs)
    return {
        "name": spec.name,
        "recipe": {
            "path": spec.recipe,
            "sha256": sha256_of(prepared.recipe),
            "overrides": masked_overrides(prepared.overrides),
        },
        "sweep": [masked_overrides(group) for group in prepared.groups],
        "chain": prepared.chain,
        "jobs": jobs,
        "nodes": cluster.num_nodes,
        "spare_nodes": cluster.spare_nodes,
        "gpus_per_node": cluster.gpus_per_node,
        "time": cluster.time,
        "node_hours": round(node_hours, 2),
        "gpu_hours": round(node_hours * cluster.gpus_per_node, 2),
        "site": {
            "name": prepared.site.name,
            "variables": masked_variables(prepared.site.variables),
        },
        "container": _container(prepared),
        "code": {
            "nemo_rl": nemo_rl.__version__,
            "commit": commit,
            "modified": modified,
        },
    }


def _hours(time: str) -> float:
    """Hours of a time limit; `config` takes those alone that have an end."""
    return (seconds_of(time) or 0) / 3600


def _container(prepared: Prepared) -> dict[str, Any] | None:
    """What identifies the image; of a registry's only the name is known here."""
    image = image_of(prepared.site, prepared.specs[0].container)
    if image is None:
        return None
    file = image_file(image, prepared.root)
    if file is None or not file.is_file():
        return {"image": image, "sha256": None}
    known, facts = recorded(file), file.stat()
    return {
        "image": image,
        "sha256": known["sha256"] if known else None,
        "bytes": facts.st_size,
        "modified": datetime.fromtimestamp(facts.st_mtime).isoformat(" ", "seconds"),
    }
