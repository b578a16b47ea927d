"""The row's task chooses the environment."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.environments.functional_reward import FunctionalRewardWrapper
from nemo_rl.environments.interfaces import EnvironmentInterface, last_turn
from nemo_rl.environments.task_environments import TaskEnvironments
from nemo_rl.utils.exceptions import RewardError


class Doubling(EnvironmentInterface):
    """Rewards 1, doubled at the end."""

    ended = False

    def step(self, message_log_batch, metadata):
        return last_turn([1.0] * len(metadata), metrics={"m": [2.0] * len(metadata)})

    def global_post_process_and_metrics(self, batch):
        batch["rewards"] = batch["rewards"] * 2
        return batch, {"rows": float(batch.size)}

    def shutdown(self):
        self.ended = True


def environments(**more):
    length = FunctionalRewardWrapper(lambda prompt, response: len(response))
    return TaskEnvironments({"length": length, "double": Doubling(), **more})


def logs(*responses):
    return [[{"role": "assistant", "content": text}] for text in responses]


def test_each_row_is_scored_by_its_task():
    tasks = ["length", "double", "length", "double:hard"]
    returned = environments().step(
        logs("ab", "abc", "", "x"), [{"task_name": task} for task in tasks]
    )
    assert returned.rewards.tolist() == [2.0, 1.0, 0.0, 1.0]
    assert returned.terminateds.tolist() == [True] * 4
    rewards = returned.metrics["length/reward"]
    assert rewards[[0, 2]].tolist() == [2.0, 0.0] and bool(
        rewards[[1, 3]].isnan().all()
    )
    assert returned.metrics["double/m"][[1, 3]].tolist() == [2.0, 2.0]


def test_the_end_sees_only_its_own_rows():
    both = environments()
    batch = BatchedDataDict(
        {
            "task_name": ["length", "double", "double"],
            "idx": torch.arange(3),
            "rewards": torch.tensor([1.0, 2.0, 3.0]),
            "sample_mask": torch.ones(3),
        }
    )
    batch, metrics = both.global_post_process_and_metrics(batch)
    assert batch["rewards"].tolist() == [1.0, 4.0, 6.0]
    assert metrics == {"double/rows": 2.0}
    both.shutdown()
    assert both.environments["double"].ended


def test_a_task_without_an_environment():
    with pytest.raises(RewardError, match="task 'lenght', and env.tasks only length, "):
        environments().step(logs("a"), [{"task_name": "lenght"}])
    rest = environments(default=Doubling())
    assert rest.step(logs("a"), [{"task_name": "other"}]).rewards.tolist() == [1.0]
