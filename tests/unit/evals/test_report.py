"""The page and the table for known numbers."""

from __future__ import annotations

import io

from rich.console import Console

from nemo_rl.evals.report import EvalResult, markdown, table, write_report
from nemo_rl.evals.statistics import Estimate


def result() -> EvalResult:
    answers = [
        {
            "idx": idx,
            "sample": sample,
            "right": idx == 0,
            "prompt": "2 +\n2 =",
            "response": "4",
            "answer": None,
            "reward": float(idx == 0),
        }
        for idx in range(3)
        for sample in range(2)
    ]
    facts = {"model": "m", "dataset": "d", "num_samples": 2, "confidence": 0.9}
    metrics = {"pass@1": Estimate(1 / 3, 0.1, 0.7, "bootstrap")}
    return EvalResult(metrics, facts, answers)


def test_page() -> None:
    page = markdown(result())
    assert "| pass@1 | 0.3333 | 0.1000 to 0.7000 | percentile bootstrap" in page
    assert "90 % interval" in page
    bars = {line[:9].strip(): line for line in page.splitlines() if " right  " in line}
    assert bars["0 right"].endswith("  2") and "#" * 40 in bars["0 right"]
    assert bars["1 right"].endswith("  0") and "#" * 20 + " " in bars["2 right"]
    assert page.count("## Right:") == 1 and page.count("## Wrong:") == 2
    assert "    prompt    2 + 2 =" in page and "    answer" not in page


def test_table() -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(table(result()))
    assert "0.3333" in stream.getvalue() and "m on d" in stream.getvalue()


def test_without_a_folder_nothing_is_written() -> None:
    write_report(result())
    assert result()["pass@1"] == 1 / 3
