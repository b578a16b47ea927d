r"""Rows of published mathematics datasets: question, reference answer, worked solution.

OpenMathInstruct-2 (arXiv:2410.01560), GSM8K (arXiv:2110.14168), MATH
(arXiv:2103.03874) and DeepScaleR. Pure functions of one row; know no file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nemo_rl.data.datasets.fields import shown, text
from nemo_rl.utils.exceptions import DataError

Row = Mapping[str, Any]

_CALCULATION = re.compile(r"<<[^<>]*>>")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")


def openmathinstruct(row: Row, where: str) -> dict[str, Any]:
    """Return problem and expected answer of OpenMathInstruct-2."""
    return _prompt(text(row, "problem", where), text(row, "expected_answer", where))


def openmathinstruct_solved(row: Row, where: str) -> dict[str, Any]:
    """Return problem and generated solution of OpenMathInstruct-2."""
    return _solved(openmathinstruct(row, where), text(row, "generated_solution", where))


def gsm8k(row: Row, where: str) -> dict[str, Any]:
    """Return question and final number of GSM8K: what follows "####".

    Commas between digits are left out: "1,000" is "1000".
    """
    answer = text(row, "answer", where)
    _, mark, final = answer.rpartition("####")
    if not mark or not final.strip():
        raise DataError(
            f"{where}: field 'answer' must end with '#### ' and the final answer, got "
            f"{shown(answer[-80:])}."
        )
    return _prompt(text(row, "question", where), final.strip().replace(",", ""))


def gsm8k_solved(row: Row, where: str) -> dict[str, Any]:
    """Return question and solution of GSM8K without the calculator's marks.

    "48/2 = <<48/2=24>>24" was written for a model that calls a calculator.
    """
    prompt = gsm8k(row, where)
    return _solved(prompt, _CALCULATION.sub("", row["answer"]).strip())


def hendrycks(row: Row, where: str) -> dict[str, Any]:
    r"""Return problem and the content of the solution's last ``\boxed{}`` of MATH."""
    solution = text(row, "solution", where)
    answer = last_boxed(solution)
    if answer is None:
        raise DataError(
            rf"{where}: field 'solution' has no \boxed{{...}}: got {shown(solution)}."
        )
    return _prompt(text(row, "problem", where), answer)


def hendrycks_solved(row: Row, where: str) -> dict[str, Any]:
    """Return problem and solution of MATH."""
    return _solved(hendrycks(row, where), text(row, "solution", where))


def deepscaler(row: Row, where: str) -> dict[str, Any]:
    """Return problem and answer of DeepScaleR; its solutions may be empty."""
    return _prompt(text(row, "problem", where), text(row, "answer", where))


def last_boxed(solution: str) -> str | None:
    r"""Return what the last ``\boxed`` or ``\fbox`` of a solution holds.

    Braces nest; a box without braces holds the next token.

    Example:
        >>> last_boxed(r"so it is $\boxed{\frac{1}{2}}$.")
        '\\frac{1}{2}'
    """
    boxes = list(_BOX.finditer(solution))
    if not boxes:
        return None
    start = boxes[-1].end()
    if not solution.startswith("{", start):
        bare = re.match(r"\\[A-Za-z]+|[^\s$.,]+", solution[start:])
        return bare.group() if bare else None
    depth = 0
    for position in range(start, len(solution)):
        escaped = solution[position - 1] == "\\"
        if solution[position] == "{" and not escaped:
            depth += 1
        elif solution[position] == "}" and not escaped:
            depth -= 1
            if depth == 0:
                return solution[start + 1 : position].strip()
    return None


def _prompt(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": question, "answer": answer, "task_name": "math"}


def _solved(prompt: dict[str, Any], solution: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": prompt["prompt"]},
            {"role": "assistant", "content": solution},
        ],
        "answer": prompt["answer"],
        "task_name": prompt["task_name"],
    }
