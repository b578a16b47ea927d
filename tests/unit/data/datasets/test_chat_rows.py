"""Conversations and pairs of published chat datasets, on rows of their real form."""

import logging

from nemo_rl.data.datasets.chat_rows import (
    helpsteer2,
    helpsteer2_pairs,
    helpsteer2_turns,
    helpsteer3_pairs,
    tulu,
    ultrafeedback,
    ultrafeedback_chosen,
)

USER = {"role": "user", "content": "Hi"}


def said(content):
    return {"role": "assistant", "content": content}


def test_tulu_and_ultrafeedback():
    assert tulu(
        {"id": "1", "messages": [USER, said("Yo")], "source": "s"}, "row 0"
    ) == {"messages": [USER, said("Yo")]}
    row = {"chosen": [USER, said("Yes")], "rejected": [USER, said("No")]}
    assert ultrafeedback(row, "row 0") == {
        "prompt": [USER],
        "chosen": "Yes",
        "rejected": "No",
    }
    assert ultrafeedback_chosen(row, "row 0") == {"messages": [USER, said("Yes")]}


def rated(prompt, response, helpfulness):
    others = {"correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
    return {
        "prompt": prompt,
        "response": response,
        "helpfulness": helpfulness,
        **others,
    }


def test_helpsteer2_pairs_the_responses_to_a_prompt(caplog):
    rows = [
        rated("a", "bad", 1), rated("a", "good", 4),
        rated("b", "one", 3), rated("b", "two", 3),
        rated("c", "fine", 3), rated("c", "poor", 0),
    ]  # fmt: skip
    with caplog.at_level(logging.INFO):
        pairs = helpsteer2_pairs(rows)
    asked = [{"role": "user", "content": "a"}]
    assert len(pairs) == 2
    assert pairs[0] == {"prompt": asked, "chosen": "good", "rejected": "bad"}
    assert (pairs[1]["chosen"], pairs[1]["rejected"]) == ("fine", "poor")
    assert pairs.describe_row(0) == "row 1"
    assert "HelpSteer2: 1 of 3 pairs left out as ties" in caplog.text
    assert helpsteer2(rows[1], "row 1") == {
        "messages": [*asked, said("good")],
        "helpfulness": 4,
    }


def test_the_turns_of_a_helpsteer2_prompt():
    prompt = "One?\n\n<extra_id_1>Assistant\nTwo.\n\n<extra_id_1>User\nThree?"
    assert [(m["role"], m["content"]) for m in helpsteer2_turns(prompt, "row 0")] == [
        ("user", "One?"),
        ("assistant", "Two."),
        ("user", "Three?"),
    ]


def test_helpsteer3_follows_the_overall_preference():
    rows = [
        {"domain": "code", "language": "python", "context": [USER], "response1": "x",
         "response2": "y", "overall_preference": value, "individual_preference": []}
        for value in (-3, 0, 1)
    ]  # fmt: skip
    pairs = helpsteer3_pairs(rows)
    assert [pairs[i] for i in range(len(pairs))] == [
        {"prompt": [USER], "chosen": "x", "rejected": "y"},
        {"prompt": [USER], "chosen": "y", "rejected": "x"},
    ]
    assert pairs.describe_row(1) == "row 2"
