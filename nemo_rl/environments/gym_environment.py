"""GymEnvironment: a class with step(action) -> observation, reward, done, info.

Each conversation plays an instance of its own, which travels in its metadata. So the
adapter itself has no state, and any worker can play any turn.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any

from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn
from nemo_rl.utils.exceptions import RewardError

_STATE = "gym_environment"


def takes_one_action(thing: Any) -> bool:
    """Return whether ``thing.step`` has exactly one parameter beside self.

    Args:
        thing: A class or an instance.
    """
    step = inspect.getattr_static(thing, "step", None)
    if not inspect.isfunction(step):
        return False
    return len(inspect.signature(step).parameters) == 2


class GymEnvironment(EnvironmentInterface):
    """Plays ``step(action)`` environments, one instance per conversation.

    The action is the text of the response. ``step`` returns what to say next (a text,
    or a message), the reward of this turn, whether it is over, and a mapping whose
    numbers become metrics. An instance with ``reset(row)`` is told its row first.

    Example:
        >>> class Echo:
        ...     def step(self, action):
        ...         return f"you said {action}", float(action == "stop"), True, {}
        >>> environment = GymEnvironment(Echo)

    Args:
        thing: The class, constructed with ``config`` where it takes an argument; or
            an instance, copied for every conversation.
        config: The environment's own settings.
    """

    def __init__(self, thing: Any, config: Mapping[str, Any] | None = None) -> None:
        """Remember what to construct."""
        super().__init__(config)
        self._thing = thing
        self.name = getattr(thing, "__name__", type(thing).__name__)

    def step(
        self,
        message_log_batch: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> EnvironmentReturn:
        """Give every conversation's last message to its instance.

        Raises:
            RewardError: A step returned something else than the four values.
        """
        import torch

        observations, states, rewards, dones, infos = [], [], [], [], []
        for log, meta in zip(message_log_batch, metadata, strict=True):
            instance = meta.get(_STATE) or self._start(meta.get("row") or {})
            answer = instance.step(str(log[-1]["content"]))
            observation, reward, done, info = self._checked(answer)
            observations.append(_message(observation))
            states.append(None if done else {_STATE: instance})
            rewards.append(reward)
            dones.append(done)
            infos.append(info)
        return EnvironmentReturn(
            observations=observations,
            metadata=states,
            next_stop_strings=[None] * len(states),
            rewards=torch.tensor(rewards, dtype=torch.float32),
            terminateds=torch.tensor(dones, dtype=torch.bool),
            answers=None,
            metrics=_numbers(infos),
        )

    def _start(self, row: Mapping[str, Any]) -> Any:
        if not isinstance(self._thing, type):
            instance = copy.deepcopy(self._thing)
        elif self.config or _needs_an_argument(self._thing):
            instance = self._thing(self.config)
        else:
            instance = self._thing()
        if hasattr(instance, "reset"):
            instance.reset(row)
        return instance

    def _checked(self, answer: Any) -> tuple[Any, float, bool, Mapping[str, Any]]:
        shown = f"{self.name}.step returned {answer!r}"
        if not isinstance(answer, tuple) or len(answer) != 4:
            raise RewardError(
                f"{shown}, expected (observation, reward, done, info). To step a batch "
                "of conversations, define step(self, message_log_batch, metadata) and "
                "return an EnvironmentReturn."
            )
        observation, reward, done, info = answer
        if not isinstance(reward, (int, float)) or not math.isfinite(reward):
            raise RewardError(f"{shown}: the reward must be a finite number.")
        return observation, float(reward), bool(done), info or {}


def _needs_an_argument(cls: type) -> bool:
    parameters = list(inspect.signature(cls).parameters.values())
    return any(
        p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        for p in parameters
    )


def _message(observation: Any) -> dict[str, str]:
    if isinstance(observation, Mapping):
        return {"role": observation["role"], "content": str(observation["content"])}
    text = "" if observation is None else str(observation)
    return {"role": "user", "content": text}


def _numbers(infos: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return name -> [B] float32 of the infos' numbers; NaN where one has none."""
    import torch

    def number(value: Any) -> bool:
        return isinstance(value, (bool, int, float))

    names = {name for info in infos for name, v in info.items() if number(v)}
    return {
        name: torch.tensor(
            [
                float(info[name]) if number(info.get(name)) else math.nan
                for info in infos
            ]
        )
        for name in sorted(names)
    }
