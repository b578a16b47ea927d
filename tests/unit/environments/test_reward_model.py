"""A tiny classifier scores conversations as Hugging Face's own pass does."""

from __future__ import annotations

import pytest
import torch
import transformers

from nemo_rl.environments.factory import make_environment
from nemo_rl.environments.parallel import ParallelEnvironment
from nemo_rl.environments.reward_model import RewardModelEnvironment
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes.tokenizers import CHATML, character_tokenizer


def save(folder, *, labels=1, template=CHATML, pad_is_end=False, head=True):
    tokenizer = character_tokenizer(template)
    if pad_is_end:
        tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = "ForSequenceClassification" if head else "ForCausalLM"
    model = getattr(transformers, f"Llama{kind}")(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


def logs(*responses):
    question = {"role": "user", "content": "q"}
    return [[question, {"role": "assistant", "content": text}] for text in responses]


@pytest.mark.parametrize(
    ("template", "pad_is_end"), [(CHATML, False), (CHATML, True), (None, False)]
)
def test_scores_are_the_models_whatever_the_batch(tmp_path, template, pad_is_end):
    model, tokenizer = save(tmp_path, template=template, pad_is_end=pad_is_end)
    conversations = logs("a longer response", "b", "cc", "another")
    environment = RewardModelEnvironment({"model_name": str(tmp_path), "batch_size": 3})
    returned = environment.step(conversations, [{}] * 4)
    model.config.pad_token_id = None
    for log, reward in zip(conversations, returned.rewards, strict=True):
        text = "q" + log[1]["content"]
        if template:
            text = tokenizer.apply_chat_template(log, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            alone = model(ids["input_ids"]).logits[0, 0]
        assert torch.allclose(alone, reward, atol=1e-5)
    assert len(set(returned.rewards.tolist())) == 4


def test_long_conversations_lose_their_beginning(tmp_path):
    save(tmp_path)
    section = {"model_name": str(tmp_path), "max_length": 7}
    environment = RewardModelEnvironment(section)
    rewards = environment.step(logs("a-tail", "b-tail"), [{}, {}]).rewards
    assert torch.allclose(rewards[0], rewards[1], atol=1e-6)


def test_what_is_no_reward_model_is_refused(tmp_path):
    save(tmp_path / "two", labels=2)
    save(tmp_path / "plain", head=False)
    for name, message in (("two", "has 2 outputs"), ("plain", "lacks score.weight")):
        environment = RewardModelEnvironment({"model_name": str(tmp_path / name)})
        with pytest.raises(ConfigurationError, match=f"{message}, expected a trained"):
            environment.step(logs("a"), [{}])


def test_it_runs_in_a_process_of_its_own():
    chosen = make_environment({"reward_model": {"model_name": "m"}})
    assert isinstance(chosen, ParallelEnvironment) and chosen.num_workers == 1
    here = make_environment({"reward_model": {"model_name": "m"}, "num_workers": 0})
    assert isinstance(here, RewardModelEnvironment)
