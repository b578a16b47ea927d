"""A judge over HTTP: a real server on this machine, that fails when told to."""

from __future__ import annotations

import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nemo_rl.environments.llm_judge import LLMJudgeEnvironment, parse_score
from nemo_rl.utils.exceptions import ConfigurationError, RewardError

KEY = "sk-very-secret"


class Judge(ThreadingHTTPServer):
    """Answers by ``script``: what it does at each request, then always the last."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[object] = ["Score: 5"]
        self.requests: list[tuple[str, dict, dict]] = []
        self.together = self.most = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Judge

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append((self.path, dict(self.headers), body))
            script = server.script
            action = script.pop(0) if len(script) > 1 else script[0]
            server.together += 1
            server.most = max(server.most, server.together)
        if action == "slow":
            time.sleep(0.05)
            action = "Score: 5"
        with server.lock:
            server.together -= 1
        if action == "hang up":
            self.close_connection = True
            self.connection.close()
            return
        status = action if isinstance(action, int) else 200
        message = {"choices": [{"message": {"content": action}}]}
        text = json.dumps(message) if status == 200 else f"no: {KEY}"
        if action == "nonsense":
            text = "<html>"
        self.send_response(status)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with Judge() as server:
        serve = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serve.start()
        yield server
        server.shutdown()


def environment(judge, **changes):
    section = {
        "base_url": f"http://127.0.0.1:{judge.server_port}/v1/",
        "judge": "big-model",
        "api_key_env": "JUDGE_KEY",
        "timeout_s": 10,
        "max_retries": 2,
        **changes,
    }
    return LLMJudgeEnvironment(section, first_wait_s=0.01)


def step(made, *responses, answer="42"):
    question = {"role": "user", "content": "What?"}
    return made.step(
        [[question, {"role": "assistant", "content": text}] for text in responses],
        [{"answer": answer}] * len(responses),
    )


def test_a_mark_becomes_a_reward(judge):
    made = environment(judge, request={"temperature": 0})
    returned = step(made, "It is {answer}.")
    assert returned.rewards.tolist() == [0.5]
    ((path, headers, body),) = judge.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"]) == ("big-model", 0)
    asked = body["messages"][0]["content"]
    assert "What?" in asked and "42" in asked and "0 (useless) to 10" in asked
    # What a response says is not filled in.
    assert "It is {answer}." in asked
    assert KEY not in json.dumps(made.config)


def test_an_instruction_of_ones_own(judge):
    instruction = "Judge {response} of {prompt} by {answer}, {other}"
    judge.script = ["**Score: 3.5**"]
    returned = step(
        environment(judge, instruction=instruction, max_score=7), "r", answer=None
    )
    assert returned.rewards.tolist() == [0.5]
    asked = judge.requests[0][2]["messages"][0]["content"]
    assert asked == "Judge r of What? by , {other}"


def test_what_passes_is_tried_again(judge, caplog):
    judge.script = [429, "hang up", "Score: 10"]
    with caplog.at_level(logging.DEBUG):
        assert step(environment(judge), "r").rewards.tolist() == [1.0]
    assert len(judge.requests) == 3
    assert "HTTP 429" in caplog.text and KEY not in caplog.text


@pytest.mark.parametrize(
    ("script", "message", "count"),
    [
        ([503], r"answers HTTP 503 .*no: \*\*\*", 3),
        ([401], "answers HTTP 401 Unauthorized", 1),
        ([302], "answers HTTP 302", 1),
        (["nonsense"], "is no chat completion: b'<html>'", 1),
    ],
)
def test_what_stays_is_an_error_without_the_key(judge, script, message, count):
    judge.script = script
    with pytest.raises(RewardError, match=message) as error:
        step(environment(judge), "r")
    assert KEY not in str(error.value) and len(judge.requests) == count


def test_an_answer_without_a_mark_counts_as_none(judge):
    judge.script = ["I like it.", "Score: 11", "Score: 2"]
    returned = step(environment(judge, num_requests=1), "a", "b", "c")
    assert returned.rewards.tolist() == pytest.approx([0.0, 0.0, 0.2])
    assert returned.metrics["not_marked"].tolist() == [1.0, 1.0, 0.0]


def test_requests_under_way_are_bounded(judge):
    judge.script = ["slow"]
    returned = step(environment(judge, num_requests=3), *"abcdefgh")
    assert returned.rewards.tolist() == [0.5] * 8
    assert 1 < judge.most <= 3


def test_settings_that_cannot_be(judge):
    with pytest.raises(ConfigurationError, match="variable NO_SUCH_KEY, which is not"):
        environment(judge, api_key_env="NO_SUCH_KEY")
    with pytest.raises(ConfigurationError, match="begins with http://"):
        environment(judge, base_url="file:///etc")


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("Score: 7", 7.0),
        ("score = [[ 3.5 ]]", 3.5),
        ("Score: 1\nno, Score: 2", 2.0),
        ("Score: -1", None),
        ("Score: 10.5", None),
        ("7/10", None),
    ],
)
def test_marks(text, mark):
    assert parse_score(text, 10) == mark
