"""The facade: tags, which sinks, secrets, failing sinks, resumes, messages."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from nemo_rl.config.services import LoggerConfig
from nemo_rl.infra.logging import (
    LoggerFacade,
    masked,
    samples_markdown,
    setup_logger,
    show_messages,
    tagged,
)
from nemo_rl.utils.exceptions import ConfigurationError


def facade(tmp_path, **kwargs) -> LoggerFacade:
    config = LoggerConfig(tensorboard_enabled=False, **kwargs.pop("config", {}))
    return LoggerFacade(config, run_dir=tmp_path, **kwargs)


def rows(logger):
    return [json.loads(line) for line in logger.metrics_path.read_text().splitlines()]


class Number:
    """Like a tensor of one element."""

    def __float__(self):
        return 1.5


def test_tags_are_grouped():
    metrics = {
        "loss": 0.5,
        "timing/step_s": 2,
        "gpu/0/power_w": 1,
        "val:accuracy": True,
        "reward": Number(),
        "nested": {"a": 1, "b": {"c": 2}},
        "train": 3,
        "text": "3",
        "list": [1, 2],
    }
    assert tagged(metrics, "train") == {
        "train/loss": 0.5,
        "timing/step_s": 2.0,
        "gpu/0/power_w": 1.0,
        "val/accuracy": 1.0,
        "train/reward": 1.5,
        "train/nested/a": 1.0,
        "train/nested/b/c": 2.0,
        "train/train": 3.0,
    }


def test_metrics_reach_the_file_and_a_resume_cuts_them(tmp_path):
    logger = facade(tmp_path)
    for step in (1, 2, 3):
        logger.log_metrics({"loss": step}, step)
    logger.log_metrics({"accuracy": 0.5}, 3, prefix="val")
    logger.close()
    logger.close()
    assert logger.log_dir == tmp_path / "logs"
    assert [row["step"] for row in rows(logger)] == [1, 2, 3, 3]
    again = facade(tmp_path, resume_step=2)
    again.log_metrics({"loss": 30}, 3)
    assert [row["train/loss"] for row in rows(again)] == [1.0, 2.0, 30.0]


def test_other_ranks_log_nowhere(tmp_path):
    logger = facade(tmp_path, rank=1, run_config={"a": 1})
    logger.log_metrics({"loss": 1}, 1)
    assert not logger.log_dir.exists()


def test_an_absolute_log_dir_is_not_moved(tmp_path):
    config = {"log_dir": str(tmp_path / "elsewhere")}
    assert facade(tmp_path / "run", config=config).log_dir == tmp_path / "elsewhere"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_names_the_extra(tmp_path, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    expected = rf"{name} is not installed.*nemo_rl\[loggers\].*{name}_enabled to false"
    with pytest.raises(ConfigurationError, match=expected):
        facade(tmp_path, config={f"{name}_enabled": True})
    assert not (tmp_path / "logs" / "metrics.jsonl").exists()


def test_a_failing_sink_is_switched_off_and_the_others_go_on(tmp_path, caplog):
    class Broken:
        name = "broken"
        errors = (OSError,)

        def log_metrics(self, metrics, step):
            raise OSError("No space left on device")

    logger = facade(tmp_path)
    logger._sinks.insert(0, Broken())
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            logger.log_metrics({"loss": 1}, step)
    assert len(rows(logger)) == 2
    assert caplog.text.count("logging to broken failed") == 1
    assert "No space left on device" in caplog.text


def test_secrets_are_masked():
    config = {
        "logger": {"wandb": {"api_key": "k1", "project": "p"}},
        "hf_token": "k2",
        "password": None,
        "stop_token_ids": [1],
        "max_new_tokens": 5,
    }
    assert masked(config) == {
        "logger": {"wandb": {"api_key": "***", "project": "p"}},
        "hf_token": "***",
        "password": None,
        "stop_token_ids": [1],
        "max_new_tokens": 5,
    }
    assert config["hf_token"] == "k2"


def test_tensorboard_gets_settings_and_samples(tmp_path):
    pytest.importorskip("torch")
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    config = LoggerConfig(num_val_samples_to_print=2)
    logger = LoggerFacade(config, run_config={"api_key": "hidden"}, run_dir=tmp_path)
    samples = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(5)]
    logger.log_samples(samples, 4)
    logger.log_metrics({"accuracy": 0.5, "timing/validation_s": 1.0}, 4, prefix="val")
    logger.close()
    read = event_accumulator.EventAccumulator(str(logger.tensorboard_dir))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {"val/accuracy", "timing/validation_s"}
    (event,) = read.Tensors("val/samples/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 4 and "p1" in text and "p2" not in text
    (event,) = read.Tensors("config/text_summary")
    assert b"hidden" not in event.tensor_proto.string_val[0]


def test_samples_read_as_markdown():
    text = samples_markdown([{"prompt": "a\nb", "response": "", "reward": 0.0}])
    assert "### Sample 1" in text
    assert "**prompt**\n\n    a\n    b" in text
    assert "**reward**\n\n    0.0" in text and "answer" not in text


@pytest.fixture
def clean_logger():
    logger = logging.getLogger("nemo_rl")
    before = logger.level, list(logger.handlers), logger.propagate
    logger.handlers, logger.propagate = [], False
    logger.setLevel(logging.NOTSET)
    yield logger
    logger.level, logger.handlers, logger.propagate = before


def test_messages_go_to_the_stderr_of_the_moment(clean_logger, monkeypatch):
    clean_logger.handlers = []  # pytest adds its own where nothing propagates
    show_messages()
    show_messages()
    assert len(clean_logger.handlers) == 1
    for text in ("first", "second"):
        replaced = io.StringIO()
        monkeypatch.setattr(sys, "stderr", replaced)
        logging.getLogger("nemo_rl.infra").info(text)
        assert replaced.getvalue().endswith(f"INFO {text}\n")


def test_a_level_that_the_user_set_stays(clean_logger, tmp_path):
    clean_logger.setLevel(logging.DEBUG)
    config = LoggerConfig(tensorboard_enabled=False)
    logger = setup_logger(config, run_dir=tmp_path)
    assert clean_logger.level == logging.DEBUG
    assert logger.metrics_path == tmp_path / "logs" / "metrics.jsonl"
