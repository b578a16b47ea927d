"""Tests of nemo_rl.launch.manifest."""

from __future__ import annotations

from nemo_rl.launch.manifest import make_manifest
from nemo_rl.launch.request import prepare


def test_what_it_costs_and_what_it_is_made_of():
    made = make_manifest(prepare("grpo_llama8b", nodes="4+1", chain=1))
    assert (made["nodes"], made["spare_nodes"], made["jobs"]) == (4, 1, 2)
    assert (made["node_hours"], made["gpu_hours"]) == (40.0, 320.0)
    assert len(made["recipe"]["sha256"]) == 64
    assert made["container"] is None and made["site"]["name"] == "generic"
    assert "commit" in made["code"]


def test_a_sweep_costs_all_its_runs():
    assert (
        make_manifest(prepare("grpo_llama8b", sweep=["grpo.seed=1,2,3"]))["node_hours"]
        == 24.0
    )
    sizes = prepare("grpo_llama8b", sweep=["cluster.num_nodes=2,4"])
    assert make_manifest(sizes)["node_hours"] == 24.0


def test_the_images_digest_is_in_it(tmp_path, monkeypatch):
    image = tmp_path / "x.sqsh"
    image.write_text("abc")
    image.with_name("x.sqsh.json").write_text('{"sha256": "d1g", "bytes": 3}')
    monkeypatch.setenv("NEMO_RL_CONTAINER", str(image))
    prepared = prepare("grpo_llama8b", site="dgx_h100")
    made = make_manifest(prepared)["container"]
    assert (made["image"], made["sha256"], made["bytes"]) == (str(image), "d1g", 3)
    image.write_text("abcd")  # No longer the file of the record.
    made = make_manifest(prepared)["container"]
    assert (made["sha256"], made["bytes"]) == (None, 4)
    assert made["modified"][:2] == "20"
    monkeypatch.setenv("NEMO_RL_CONTAINER", "nvcr.io#nvidia/pytorch:25.01-py3")
    made = make_manifest(prepare("grpo_llama8b", site="dgx_h100"))["container"]
    assert made == {"image": "nvcr.io#nvidia/pytorch:25.01-py3", "sha256": None}
