"""What stands between two turns, by real templates and a tokenizer of characters."""

from __future__ import annotations

import pytest

from nemo_rl.experience.turns import TurnJoiner, check_observation
from nemo_rl.utils.exceptions import DataError, RewardError
from tests.fakes.tokenizers import CHATML, FORGETFUL, character_tokenizer

# Opens the assistant's turn by something that later turns do not show.
OPENING = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
END = 2


def talk(*contents: str, role: str = "user") -> list[dict[str, str]]:
    roles = ["user", "assistant", role]
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]


def test_the_whole_conversation_is_what_the_template_renders() -> None:
    tokenizer = character_tokenizer(CHATML)
    messages = talk("q", "left", "again")
    whole = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    start = tokenizer.apply_chat_template(
        messages[:1], tokenize=False, add_generation_prompt=True
    )

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    sampled = [*ids("left"), END]
    between = TurnJoiner(tokenizer).between(messages, prompt=1, last_token=END)
    assert ids(start) + sampled + between == ids(whole)


def test_the_end_token_is_put_where_the_policy_did_not_sample_it() -> None:
    joiner = TurnJoiner(character_tokenizer(CHATML))
    messages = talk("q", "left", "again")
    cut = joiner.between(messages, prompt=1, last_token=50)
    ended = joiner.between(messages, prompt=1, last_token=END)
    assert cut == [END, *ended] and ended[0] != END


def test_a_space_before_the_response_is_the_policys_to_sample() -> None:
    tokenizer = character_tokenizer(SPACED)
    ids = TurnJoiner(tokenizer).between(
        talk("q", " left", "o"), prompt=1, last_token=END
    )
    assert tokenizer.decode(ids) == "[INST] o [/INST]"


def test_assistant_turns_of_the_prompt_stay_as_they_are() -> None:
    tokenizer = character_tokenizer(CHATML)
    example = [{"role": "user", "content": "e"}, {"role": "assistant", "content": "r"}]
    joiner = TurnJoiner(tokenizer)
    shown = joiner.between([*example, *talk("q", "a", "o")], prompt=3, last_token=END)
    assert shown == joiner.between(talk("q", "a", "o"), prompt=1, last_token=END)


def test_an_environment_speaks_as_the_user() -> None:
    joiner = TurnJoiner(character_tokenizer(CHATML))
    user, environment = (
        joiner.between(talk("q", "a", "o", role=role), prompt=1, last_token=END)
        for role in ("user", "environment")
    )
    assert user == environment


def test_without_a_template_an_observation_is_its_text() -> None:
    tokenizer = character_tokenizer()
    joiner = TurnJoiner(tokenizer)
    joiner.check()
    ids = joiner.between(talk("q", "a", "no>"), prompt=1, last_token=END)
    assert tokenizer.decode(ids) == "no>"


def test_a_template_that_forgets_thinking_is_refused_at_once() -> None:
    TurnJoiner(character_tokenizer(CHATML)).check()
    with pytest.raises(DataError, match="rewrites earlier turns: the thinking"):
        TurnJoiner(character_tokenizer(FORGETFUL)).check()


def test_a_template_that_renders_another_past_is_refused() -> None:
    joiner = TurnJoiner(character_tokenizer(OPENING))
    with pytest.raises(DataError, match=r"is '.*<think>\\n' when it is sampled"):
        joiner.between(talk("q", "a", "o"), prompt=1, last_token=END)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ("wrong", "returned the observation 'wrong', expected"),
        ({"role": "user"}, "expected {'role': 'user'"),
        ({"role": "usr", "content": ""}, "role 'usr', expected .* Did you mean user"),
        ({"role": "assistant", "content": ""}, "role 'assistant'"),
    ],
)
def test_observations_that_cannot_be(observation, message) -> None:
    with pytest.raises(RewardError, match=message):
        check_observation(observation, "Game")
    good = {"role": "tool", "content": "x", "extra": 1}
    assert check_observation(good, "Game") == {"role": "tool", "content": "x"}
