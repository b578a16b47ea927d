"""Tests of nemo_rl.launch.preflight.rows."""

from __future__ import annotations

import os

from nemo_rl.launch.preflight import rows
from nemo_rl.launch.site import root_dir

CPU = root_dir() / "recipes" / "grpo_smollm2_cpu.yaml"


def test_without_a_recipe_there_is_nothing_to_read(context):
    assert rows.check(context()).verdict == "skipped"
    assert rows.recipe(context()).verdict == "skipped"


def test_a_recipe_is_read(context):
    found = rows.recipe(context(recipe=CPU))
    assert found.measured.startswith("1 nodes x 2 ranks; ")


def test_a_users_mistake_has_the_words_of_a_run(context):
    wrong = context(
        recipe=CPU,
        overrides=("env.reward_fn=no_such:reward",),
        variables=dict(os.environ),
    )
    found = rows.check(wrong)
    assert (found.verdict, found.blame) == ("fail", "user")
    assert "no module named no_such" in found.measured


def test_rows_go_through_template_and_reward(context):
    found = rows.check(context(recipe=CPU, variables=dict(os.environ)))
    assert found.verdict == "ok", found.measured
    assert "16 of them through the template and the reward" in found.measured
