"""The command line: flags become keywords, mistakes one paragraph."""

from __future__ import annotations

from nemo_rl.evals.cli import keywords_of, main, parse
from nemo_rl.launch.__main__ import main as nemo_rl


def keywords(*arguments: str) -> dict:
    return keywords_of(parse(["m", *arguments], "prog"))


def test_flags_and_overrides() -> None:
    found = keywords(
        *("d", "--samples", "8", "--k", "1", "4", "--tp", "2", "--split", "test"),
        *("--env", "exact_match", "--gpus", "2"),
        *("--temperature", "0.5", "data.prompt_key=question", "env.batched=true"),
    )
    assert found == {
        "num_samples": 8,
        "k": [1, 4],
        "tensor_parallel_size": 2,
        "gpus_per_node": 2,
        "temperature": 0.5,
        "dataset_kwargs": {"split": "test"},
        "data": {"prompt_key": "question"},
        "env": {"name": "exact_match", "batched": True},
    }


def test_overrides_alone_leave_the_data_set_to_them() -> None:
    options = parse(["m", "data.dataset_name=d", "eval.seed=3"], "prog")
    assert options.dataset is None
    assert keywords("data.dataset_name=d")["data"] == {"dataset_name": "d"}


def test_workers_are_as_many_as_the_layout_needs(monkeypatch) -> None:
    # No GPU is visible, whatever machine this is.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert keywords("--tp", "2", "--pp", "2")["cpu_workers_per_node"] == 4
    assert keywords("--tp", "2", "--workers", "8")["cpu_workers_per_node"] == 8
    assert "cpu_workers_per_node" not in keywords("cluster.num_nodes=2")


def test_mistakes_are_one_paragraph(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["m"]) == 2
    assert main(["./nothing", "arithmetic", "--samples", "0"]) == 2
    assert nemo_rl(["eval", "./nothing", "arithmetic"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line[:9] for line in lines if line[:1] != " "] == ["nemo_rl: "] * 3
    assert "no data set" in lines[0] and "eval.num_samples" in "".join(lines)
    assert "The model './nothing' was not found" in lines[-1]
    assert not list(tmp_path.iterdir())
