"""Data and a reward of your own: the model learns to shout a word back.

    python recipes/grpo_custom_reward.py grpo.max_num_steps=10
    python -m nemo_rl.launch recipes/grpo_custom_reward.yaml --site local

Both are the same run: the YAML file names the two functions below.
"""

from __future__ import annotations

import sys
from difflib import SequenceMatcher
from pathlib import Path

WORDS = """
apple river stone cloud tiger piano lemon chair train glass horse bread
ocean candle garden window pencil rocket silver winter bridge butter castle dragon
forest guitar hammer island jacket kitten ladder market needle orange pepper rabbit
saddle tunnel violin wallet
"""


def rows(split: str = "train") -> list[dict[str, str]]:
    """Return the prompts; the reward gets the whole row, whatever its fields."""
    words = WORDS.split()
    words = words[8:] if split == "train" else words[:8]
    return [{"prompt": f"Shout this word: {word}", "word": word} for word in words]


def reward(prompt: str, response: str, *, row: dict[str, str]) -> float:
    """Return how much of the response is the word in capitals, from 0 to 1."""
    return SequenceMatcher(None, response.strip(), row["word"].upper()).ratio()


if __name__ == "__main__":
    from nemo_rl.launch import driver

    sys.exit(driver.main([str(Path(__file__).with_suffix(".yaml")), *sys.argv[1:]]))
