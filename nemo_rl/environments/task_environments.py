"""TaskEnvironments: the task_name of a row chooses its environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn
from nemo_rl.environments.merging import Part, merge_returns
from nemo_rl.utils.exceptions import RewardError
from nemo_rl.utils.suggest import did_you_mean

DEFAULT = "default"


class TaskEnvironments(EnvironmentInterface):
    """Hands every conversation to the environment of its task.

    A task of the form "family:member" without an environment of its own takes that of
    "family"; any other takes "default". Metrics of a task begin with its name and a
    slash; ``<task>/reward`` is the mean of its rewards.

    Args:
        environments: Name of the task -> environment.
    """

    def __init__(self, environments: Mapping[str, EnvironmentInterface]) -> None:
        """Keep the environments."""
        super().__init__()
        self.environments = dict(environments)

    def step(
        self,
        message_log_batch: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> EnvironmentReturn:
        """Let each environment score its own conversations.

        Raises:
            RewardError: A row's task has no environment.
        """
        rows: dict[str, list[int]] = {}
        for row, meta in enumerate(metadata):
            rows.setdefault(self.name_of(meta.get("task_name", DEFAULT)), []).append(
                row
            )
        parts = []
        for name, chosen in rows.items():
            returned = self.environments[name].step(
                [message_log_batch[row] for row in chosen],
                [metadata[row] for row in chosen],
            )
            metrics = {**(returned.metrics or {}), "reward": returned.rewards}
            returned = returned._replace(metrics=metrics)
            parts.append(Part(f"environment {name}", chosen, returned, f"{name}/"))
        return merge_returns(parts, len(metadata))

    def name_of(self, task: str) -> str:
        """Return which of the environments a task belongs to.

        Raises:
            RewardError: None of them.
        """
        for name in (task, task.partition(":")[0], DEFAULT):
            if name in self.environments:
                return name
        known = ", ".join(self.environments)
        raise RewardError(
            f"A row has the task {task!r}, and env.tasks only {known}. Add it, or "
            f"{DEFAULT!r} for all others.{did_you_mean(task, self.environments)}"
        )

    def global_post_process_and_metrics(
        self, batch: BatchedDataDict
    ) -> tuple[BatchedDataDict, dict[str, float]]:
        """Let each environment look at its own rows.

        Of what an environment changes there, rewards and sample_mask are kept.
        """
        found: dict[str, float] = {}
        names = [self.name_of(task) for task in batch["task_name"]]
        for name in dict.fromkeys(names):
            rows = [row for row, other in enumerate(names) if other == name]
            part = batch.select(rows)
            post = self.environments[name].global_post_process_and_metrics
            changed, metrics = post(part)
            found |= {f"{name}/{key}": value for key, value in metrics.items()}
            for column in ("rewards", "sample_mask"):
                batch[column] = batch[column].index_copy(
                    0, batch["idx"].new_tensor(rows), changed[column]
                )
        return batch, found

    def shutdown(self) -> None:
        """End what the environments have started."""
        for environment in self.environments.values():
            environment.shutdown()
