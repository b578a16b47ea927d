"""The documented interface, run as it is documented: one test per sample and signature.

Samples stand here in their own words, with a random model of two layers, CPU workers on
a real Ray, and sizes of a few tokens. What cannot be had is asserted to say what to use
instead. docs/seed-coverage.md lists every documented name with its test.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nemo_rl
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models
from tests.fakes.policies import OneWordPolicy
from tests.fakes.tokenizers import CHATML, character_tokenizer
from tests.functional.ranks import run_ranks

ROOT = Path(__file__).parents[2]
ROWS = [{"prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(8)]
TALKS = [{"prompt": row["prompt"], "response": row["answer"]} for row in ROWS]
PAIRS = [
    {"prompt": row["prompt"], "chosen": row["answer"], "rejected": "no"} for row in ROWS
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A folder with a random model of two layers and a tokenizer of characters."""
    folder = tmp_path_factory.mktemp("pages") / "model"
    tokenizer = character_tokenizer(CHATML)
    models.save(folder, "llama", layers=2, hidden=32, heads=4, kv_heads=2)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[str]:
    """One Ray for the module; runs join it and leave it running."""
    ray = pytest.importorskip("ray")
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    context = ray.init(
        address="local",
        num_cpus=8,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()
    os.environ.pop("RAY_AUTH_MODE")
    if before is not None:
        os.environ["RAY_AUTH_MODE"] = before


def sections(folder: Path) -> dict[str, Any]:
    """Sections that keep a run small and quiet."""
    return {
        "checkpointing": {"enabled": False},
        "logger": {
            "log_dir": str(folder / "logs"),
            "console": "off",
            "tensorboard_enabled": False,
        },
        "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": 1},
    }


def recipe(model: str, folder: Path, **own: Any) -> dict[str, Any]:
    """A recipe for two rows a step; ``own`` are the algorithm's sections."""
    return {
        "policy": {
            "model_name": model,
            "precision": "float32",
            "train_global_batch_size": 2,
            "train_micro_batch_size": 1,
            "max_total_sequence_length": 64,
            "generation": {"max_new_tokens": 4},
        },
        **sections(folder),
        **own,
    }


GRPO_SECTION = {
    "grpo": {
        "num_prompts_per_step": 1,
        "num_generations_per_prompt": 2,
        "max_num_steps": 1,
        "val_period": 0,
    }
}
SFT_SECTION = {"sft": {"batch_size": 2, "max_num_steps": 1, "val_period": 0}}


@pytest.fixture(scope="module")
def policy(model, ray_session, tmp_path_factory) -> Iterator[Any]:
    """The policy of the training set-up, on a cluster of one CPU worker."""
    from nemo_rl.data import load_tokenizer
    from nemo_rl.distributed import RayVirtualCluster
    from nemo_rl.models.policy import Policy

    config = recipe(model, tmp_path_factory.mktemp("policy"))
    tokenizer = load_tokenizer(Path(model))
    cluster = RayVirtualCluster([1], use_gpus=False, name="pages")
    policy = Policy(cluster, config, tokenizer)
    yield policy
    cluster.shutdown()


@pytest.fixture
def config(model, tmp_path) -> dict[str, Any]:
    return recipe(model, tmp_path, **GRPO_SECTION)


# The API reference.


def test_core_training_classes_are_imported_together() -> None:
    from nemo_rl.algorithms import DPO, GRPO, SFT
    from nemo_rl.algorithms.interfaces import AlgorithmInterface
    from nemo_rl.distributed import RayVirtualCluster, RayWorkerGroup
    from nemo_rl.models.policy import Policy

    for algorithm in (GRPO, DPO, SFT):
        assert issubclass(algorithm, AlgorithmInterface)
        names = list(inspect.signature(algorithm).parameters)
        assert names == ["policy", "config"]
    assert list(inspect.signature(Policy).parameters)[:3] == (
        ["cluster", "config", "tokenizer"]
    )
    assert inspect.isclass(RayVirtualCluster) and inspect.isclass(RayWorkerGroup)


def test_configuration_and_logger(tmp_path) -> None:
    from nemo_rl.utils.config import Config
    from nemo_rl.utils.logger import setup_logger

    class Mine(Config):
        rate: float = 0.5

    assert Mine.from_mapping({})["rate"] == Mine().rate == 0.5
    section = {**sections(tmp_path)["logger"], "monitor_gpus": False}
    from nemo_rl.config import LoggerConfig

    logger = setup_logger(LoggerConfig.from_mapping(section), run_config={})
    logger.log_metrics({"loss": 1.0}, 1, prefix="train")
    logger.close()
    assert '"train/loss": 1.0' in (tmp_path / "logs" / "metrics.jsonl").read_text()


def test_data_processing() -> None:
    from nemo_rl.data.datasets import load_dataset
    from nemo_rl.data.llm_message_utils import format_messages

    row = load_dataset("arithmetic")[0]
    messages = [*row["messages"], {"role": "assistant", "content": "7"}]
    formatted = format_messages(messages, character_tokenizer(CHATML))
    assert formatted[-1]["token_loss_mask"].sum() == 2  # "7" and the end of the turn
    assert formatted[0]["token_loss_mask"].sum() == 0


def test_model_generation_names() -> None:
    from nemo_rl.models.generation.interfaces import GenerationInterface

    assert inspect.isabstract(GenerationInterface)
    with pytest.raises(ImportError, match="not in this version.*HuggingFaceGeneration"):
        from nemo_rl.models.generation import VllmGeneration  # noqa: F401
    with pytest.raises(ImportError, match="not in this version.*HuggingFaceGeneration"):
        from nemo_rl.models.generation.vllm import VllmGeneration  # noqa: F401, F811


def test_basic_training_setup(policy, model, tmp_path) -> None:
    from nemo_rl.algorithms import SFT
    from nemo_rl.distributed import RayVirtualCluster

    # The four GPUs of the sample are counted, and reserved with the first worker.
    assert RayVirtualCluster(gpus_per_node=4).world_size == 4
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in TALKS))
    config = recipe(model, tmp_path, **SFT_SECTION, data={"dataset_name": str(rows)})
    sft = SFT(policy, config)
    result = sft.train()
    assert result.steps == 1 and result.metrics["loss"] > 0


def test_gpus_that_are_not_there_are_named(ray_session) -> None:
    from nemo_rl.distributed import RayVirtualCluster
    from nemo_rl.utils.exceptions import ResourceError

    cluster = RayVirtualCluster(gpus_per_node=4, timeout_s=0.5)
    with pytest.raises(ResourceError, match="GPU"):
        cluster.placement_group()
    cluster.shutdown()


def test_custom_dataset(policy, model, tmp_path) -> None:
    from nemo_rl.algorithms import SFT
    from nemo_rl.data.datasets import DatasetInterface

    tokenizer = character_tokenizer()

    class CustomDataset(DatasetInterface):
        def __init__(self, config):
            super().__init__(config)

        def __getitem__(self, idx):
            input_tokens = torch.tensor(tokenizer(f"{idx}+1={idx + 1}")["input_ids"])
            attention_mask = torch.ones_like(input_tokens)
            label_tokens = input_tokens.clone()
            label_tokens[:4] = -100
            return {
                "input_ids": input_tokens,
                "attention_mask": attention_mask,
                "labels": label_tokens,
            }

    config = recipe(model, tmp_path, **SFT_SECTION)
    with pytest.raises(TypeError, match="CustomDataset has no __len__; define it"):
        SFT(policy, config).train(dataset=CustomDataset(config))

    class Counted(CustomDataset):
        def __len__(self):
            return 4

    result = SFT(policy, config).train(dataset=Counted({"size": 4}))
    assert Counted({"size": 4}).config == {"size": 4}
    assert result.metrics["global_valid_tokens"] == 2


def test_custom_environment(policy, config) -> None:
    from nemo_rl.algorithms import GRPO
    from nemo_rl.environments.interfaces import EnvironmentInterface

    class CustomEnvironment(EnvironmentInterface):
        def __init__(self, config):
            super().__init__(config)

        def step(self, action):
            observation, reward = f"you said {action}", float(len(action))
            done, info = True, {"words": 1}
            return observation, reward, done, info

    result = GRPO(policy, config).train(dataset=ROWS, reward_fn=CustomEnvironment)
    assert result.metrics["reward"] >= 0 and result.metrics["words"] == 1


def test_types_of_batches_and_configurations(policy) -> None:
    from nemo_rl.config import BaseConfig
    from nemo_rl.distributed import BatchedDataDict

    batch = BatchedDataDict({"input_ids": torch.zeros(2, 3)})
    assert isinstance(batch, Mapping) and batch.size == 2
    assert BatchedDataDict["GenerationDatumSpec"] is not None
    assert isinstance(policy.config, BaseConfig)
    assert dict(policy.config)["model_name"] == policy.config["model_name"]


def test_common_exceptions(policy, model, tmp_path) -> None:
    from nemo_rl.algorithms import GRPO, SFT
    from nemo_rl.utils.exceptions import (
        ConfigurationError,
        NemoRLError,
        ResourceError,
        TrainingError,
    )

    seen = []
    for start in (
        lambda: SFT(policy, recipe(model, tmp_path, sft={"batch_sise": 2})).train(),
        lambda: GRPO(policy, recipe(model, tmp_path, **GRPO_SECTION)).train(
            dataset=ROWS, reward_fn=lambda prompt, response: float("nan")
        ),
    ):
        try:
            start()
        except ConfigurationError as e:
            seen.append(f"Configuration error: {e}")
        except TrainingError as e:
            seen.append(f"Training error: {e}")
    assert "Did you mean batch_size?" in seen[0]
    assert seen[0].startswith("Configuration error")
    assert seen[1].startswith("Training error")
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(ResourceError, NemoRLError)


def test_debugging() -> None:
    import nemo_rl.infra.logging as module

    logger = logging.getLogger("nemo_rl")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    assert module.log.isEnabledFor(logging.DEBUG)
    logger.setLevel(before)


def test_memory_management(policy) -> None:
    # What workers were started with stays: the same value passes, another says where.
    policy.gradient_checkpointing = False
    policy.mixed_precision = False
    torch.cuda.empty_cache()
    with pytest.raises(ConfigurationError, match="activation_checkpointing is False an"):
        policy.gradient_checkpointing = True
    with pytest.raises(ConfigurationError, match="policy.precision is 'float32' and"):
        policy.mixed_precision = True


def test_parallel_sizes_of_a_policy(policy) -> None:
    policy.dtensor_cfg.enabled = False
    policy.megatron_cfg.pipeline_model_parallel_size = 1
    with pytest.raises(ConfigurationError, match="policy.dtensor_cfg.enabled is False"):
        policy.dtensor_cfg.enabled = True
    with pytest.raises(ConfigurationError, match="tensor_parallel_size is 1 and the w"):
        policy.dtensor_cfg.tensor_parallel_size = 2
    with pytest.raises(ConfigurationError, match="pipeline_model_parallel_size is 1"):
        policy.megatron_cfg.pipeline_model_parallel_size = 2
    # The same assignments, made before there is a policy, are its configuration.
    section = policy.config.model_copy(deep=True)
    section.megatron_cfg.enabled = False
    section.dtensor_cfg.enabled = True
    section.dtensor_cfg.tensor_parallel_size = 2
    section.megatron_cfg.pipeline_model_parallel_size = 2
    assert section.dtensor_cfg.tensor_parallel_size == 2


def test_adding_new_algorithms(policy, config) -> None:
    from nemo_rl.algorithms import GRPO
    from nemo_rl.algorithms.interfaces import AlgorithmInterface

    class CustomAlgorithm(AlgorithmInterface):
        def __init__(self, policy, config):
            super().__init__(policy, config)

        def train(self):
            return GRPO(self.policy, self.config).train(
                dataset=ROWS, reward_fn=lambda prompt, response: float(len(response))
            )

        def evaluate(self):
            return GRPO(self.policy, self.config).evaluate(
                dataset=ROWS,
                reward_fn=lambda prompt, response: float(len(response)),
                val_dataset=ROWS[:2],
            )

    algorithm = CustomAlgorithm(policy, config)
    assert algorithm.train().steps == 1
    assert algorithm.evaluate()["num_samples"] == 2


def test_versions_that_are_needed(monkeypatch) -> None:
    from importlib.metadata import version

    for package, least in (("torch", 2), ("transformers", 4), ("ray", 2)):
        assert int(version(package).partition(".")[0]) >= least
    # Python 3.9 and 3.10 are too old, and are told so before anything else.
    source = ROOT / "nemo_rl" / "__init__.py"
    ast.parse(source.read_text(encoding="utf-8"), feature_version=(3, 9))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
        with pytest.raises(ImportError, match="needs Python 3.11, 3.12 or 3.13, and t"):
            runpy.run_path(str(source))


# The API overview.


@pytest.mark.parametrize(
    "name",
    "algorithms converters data distributed environments evals experience metrics "
    "models utils".split(),
)
def test_module_index(name: str) -> None:
    assert import_module(f"nemo_rl.{name}").__doc__


def test_creating_a_virtual_cluster() -> None:
    from nemo_rl.distributed.virtual_cluster import RayVirtualCluster

    cluster = RayVirtualCluster(
        bundle_ct_per_node_list=[4],
        use_gpus=True,
        num_gpus_per_node=4,
    )
    assert (cluster.world_size, cluster.num_nodes, cluster.use_gpus) == (4, 1, True)
    assert RayVirtualCluster([4]).world_size == 4


def test_setting_up_a_worker_group(ray_session, monkeypatch) -> None:
    from nemo_rl.distributed.virtual_cluster import RayVirtualCluster
    from nemo_rl.distributed.worker_groups import RayWorkerGroup
    from nemo_rl.utils.exceptions import ResourceError

    class PolicyWorker:
        def __init__(self, rank_info):
            self.rank_info = rank_info

        def place(self, offset):
            return self.rank_info.rank + offset, self.rank_info.world_size

    cluster = RayVirtualCluster([2], use_gpus=False, name="group")
    worker_group = RayWorkerGroup(
        virtual_cluster=cluster,
        actor_class=PolicyWorker,
        num_workers=2,
    )
    assert worker_group.run_all("place", 10) == [(10, 2), (11, 2)]
    worker_group.shutdown()
    # Another version of the library in the workers is an error, unless it is allowed.
    monkeypatch.setattr(nemo_rl, "__version__", "9.9")
    monkeypatch.delenv("NRL_IGNORE_VERSION_MISMATCH", raising=False)
    arguments = {"virtual_cluster": cluster, "actor_class": PolicyWorker}
    with pytest.raises(ResourceError, match="9.9 where the driver runs.*IGNORE_VERSION"):
        RayWorkerGroup(**arguments, num_workers=1)
    monkeypatch.setenv("NRL_IGNORE_VERSION_MISMATCH", "1")
    worker_group = RayWorkerGroup(**arguments, num_workers=1)
    assert worker_group.run_all("place", 0) == [(0, 1)]
    cluster.shutdown()


def test_implementing_custom_loss_functions(policy) -> None:
    from nemo_rl.algorithms.interfaces import LossFunctionInterface
    from nemo_rl.distributed import BatchedDataDict

    class CustomLoss(LossFunctionInterface):
        def compute_loss(self, batch, model_output):
            mask = batch["token_mask"][:, 1:]
            return -(model_output.logprobs[:, 1:] * mask).sum() / mask.sum()

    batch = BatchedDataDict(
        {
            "input_ids": torch.arange(3, 13).reshape(2, 5),
            "input_lengths": torch.tensor([5, 5]),
            "token_mask": torch.tensor([[0.0, 0, 1, 1, 1]] * 2),
            "sample_mask": torch.ones(2),
        }
    )
    before = policy.get_logprobs(batch)["logprobs"]
    # Two micro-batches of a row: the shares of the loss are summed.
    metrics = policy.train(batch, CustomLoss())
    expected = -before[:, 2:].mean(1).sum().item()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-4)


# The architecture guide.

LAYOUT = {
    "api.functional": "build_config create_trainer",
    "api.train": "train",
    "algorithms.grpo.config": "GRPOConfig",
    "algorithms.grpo.loss": "GRPOLossFn",
    "algorithms.grpo.data": "build_train_batch",
    "algorithms.grpo.trainer": "GRPOTrainer",
    "algorithms.sft.trainer": "SFTTrainer",
    "algorithms.dpo.trainer": "DPOTrainer",
    "algorithms.rollout": "RolloutEngine",
    "backends.factory": "get_training_backend",
    "backends.training.base": "TrainingBackend",
    "backends.training.dtensor": "DTensorBackend",
    "backends.training.megatron": "MegatronBackend",
    "backends.generation.base": "GenerationBackend",
    "backends.generation.megatron": "MegatronInferenceBackend",
    "config.base": "BaseConfig",
    "config.policy": "PolicyConfig",
    "config.training": "GRPOConfig SFTConfig DPOConfig",
    "config.cluster": "ClusterConfig",
    "config.validation": "validate_master",
    "data.module": "DataModule",
    "data.module_hf": "HFDataModule",
    "environments.interfaces": "EnvironmentInterface",
    "environments.functional_reward": "FunctionalRewardWrapper",
    "environments.math_environment": "MathEnvironment",
    "infra.resources": "ResourceManager",
    "infra.checkpointing": "CheckpointManager",
    "infra.logging": "LoggerFacade",
    "models.policy.training_policy": "TrainingPolicy",
    "models.policy.generation_policy": "GenerationPolicy",
    "models.policy.workers": "PolicyWorker",
    "trainers.base": "BaseTrainer",
    "trainers.callbacks": "Callback",
    "trainers.validation": "ValidationRunner",
}


@pytest.mark.parametrize("module", LAYOUT)
def test_module_structure(module: str) -> None:
    found = import_module(f"nemo_rl.{module}")
    for name in LAYOUT[module].split():
        assert getattr(found, name).__doc__


FLOW = [
    "_validate_inputs",
    "_create_trainer_for_algorithm",
    "build_config",
    "fit",
    "setup",
    "_setup_checkpointing",
    "_setup_logger",
    "_setup_cluster",
    "_training_loop",
    "_on_epoch_begin",
    "_train_step",
    "_on_epoch_end",
]
"""One `build_config` serves all algorithms; whether a run can be saved is found out
before the logs of an earlier run are touched."""


def test_five_lines_and_the_way_of_a_request(model, ray_session, tmp_path) -> None:
    seen: list[str] = []

    def note(frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_name
        if event == "call" and name in FLOW and name not in seen:
            seen.append(name)

    small = {
        "max_steps": 1,
        "max_epochs": 1,
        "batch_size": len(ROWS),
        "num_generations_per_prompt": 2,
        "max_sequence_length": 64,
        "max_new_tokens": 4,
        "learning_rate": 1e-6,
        **{k: v for k, v in sections(tmp_path).items() if k != "cluster"},
    }
    sys.setprofile(note)
    result = nemo_rl.train(
        model=model,
        dataset=ROWS,
        reward_fn=lambda p, r: 1.0 if "correct" in r else 0.0,
        algorithm="grpo",
        **small,
    )
    sys.setprofile(None)
    assert isinstance(result, nemo_rl.TrainResult)
    assert (result.steps, result.status) == (1, "completed")
    assert result.metrics["reward"] == 0.0
    assert seen == FLOW


def test_from_pretrained(model, policy, tmp_path) -> None:
    from nemo_rl import GRPOTrainer

    trainer = GRPOTrainer.from_pretrained(
        model, num_prompts_per_step=32, cluster={"gpus_per_node": 8}
    )
    assert trainer.config.grpo.num_prompts_per_step == 32
    assert trainer.config.policy.train_global_batch_size == 32 * 16
    # And with sizes of this machine it trains; tests/functional/test_api.py starts a
    # cluster for it, here it gets the policy that is there.
    trainer = GRPOTrainer.from_pretrained(
        model,
        num_prompts_per_step=2,
        num_generations_per_prompt=2,
        max_steps=1,
        train_global_batch_size=2,
        max_total_sequence_length=64,
        max_new_tokens=4,
        **sections(tmp_path),
    )
    trainer = GRPOTrainer(trainer.config, policy=policy)
    dataset = tmp_path / "my-dataset.jsonl"
    dataset.write_text("\n".join(json.dumps(row) for row in ROWS))
    result = trainer.fit(
        dataset=str(dataset), reward_fn=lambda prompt, response: 0.5
    )
    assert result.metrics["reward"] == 0.5


def test_published_data_sets_of_the_samples_are_known() -> None:
    from nemo_rl.data.datasets.catalogue import published

    assert published("nvidia/OpenMathInstruct-2")
    assert published("nvidia/HelpSteer2") or published("helpsteer2")


def copied(tmp_path: Path) -> Path:
    """A copy of the package and of the stand-ins of its tests."""
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "nemo_rl", copy / "nemo_rl", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "fakes", copy / "tests" / "fakes", ignore=ignored)
    (copy / "tests" / "__init__.py").touch()
    return copy


def run_in(copy: Path, code: str, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), **variables},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


PAGE = ROOT / "docs" / "adding-an-algorithm.md"


def test_the_page_on_adding_an_algorithm(model, ray_session, tmp_path) -> None:
    """Its files are written where it says; its test and its run pass."""
    copy = copied(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", text, flags=re.S)
    assert len(blocks) == text.count("```python") == 9
    for path, code in blocks:
        file = copy / path
        if path == "nemo_rl/algorithms/__init__.py":
            table = file.read_text(encoding="utf-8")
            code = table.replace("    {\n", f"    {{\n{code}", 1)
        elif file.exists():
            code = file.read_text(encoding="utf-8") + code
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code, encoding="utf-8")
    done = run_in(
        copy,
        "import pytest, runpy, sys, nemo_rl.algorithms\n"
        "assert 'torch' not in sys.modules\n"
        "from nemo_rl.algorithms import MyAlgoConfig, MyAlgoTrainer\n"
        "assert {'MyAlgoTrainer', 'MyAlgoConfig'} <= set(nemo_rl.algorithms.__all__)\n"
        "assert pytest.main(['-q', '-pno:cacheprovider', 'tests/unit']) == 0\n"
        "runpy.run_path('run.py')\n",
        model,
        RAY_ADDRESS=ray_session,
    )
    assert "2 passed" in done and "completed: 2 steps" in done


SKETCH = {
    "__init__.py": """
from nemo_rl.algorithms.myalgo.config import MyAlgoConfig
from nemo_rl.algorithms.myalgo.trainer import MyAlgoTrainer
""",
    "config.py": """
from nemo_rl.config import LoopConfig
class MyAlgoConfig(LoopConfig):
    my_param: float = 1.0
""",
    "loss.py": """
def my_loss(lengths, scale):
    return scale * lengths.float().mean()
""",
    "data.py": """
def columns(batch):
    return batch["input_lengths"]
""",
    "trainer.py": """
from nemo_rl.algorithms.myalgo.data import columns
from nemo_rl.algorithms.myalgo.loss import my_loss
from nemo_rl.trainers.base import BaseTrainer

class MyAlgoTrainer(BaseTrainer):
    @classmethod
    def _build_config_from_pretrained(cls, model, **kwargs):
        config = super()._build_config_from_pretrained(model, **kwargs)
        config["myalgo"] = {"my_param": kwargs.pop("my_param", 1.0)}
        return config

    def __init__(self, config):
        super().__init__(config)
        self._myalgo_config = config.get("myalgo", {})

    def _train_step(self, batch):
        loss_value = self._compute_loss(batch, columns(batch)).item()
        return {"loss": loss_value}

    def _compute_loss(self, batch, outputs):
        return my_loss(outputs, self._myalgo_config["my_param"])
""",
}
"""A package of the smallest kind; its configuration is any mapping."""
REGISTERED = {
    "algorithms/__init__.py": """
from nemo_rl.algorithms.myalgo import MyAlgoTrainer, MyAlgoConfig
__all__ += ["MyAlgoTrainer", "MyAlgoConfig"]
""",
    "api/functional.py": """
try:
    from nemo_rl.algorithms.myalgo import MyAlgoTrainer
    _ALGORITHM_REGISTRY["myalgo"] = MyAlgoTrainer
except ImportError:
    pass
""",
}
TRY = """
import sys
from nemo_rl.algorithms import *
from nemo_rl.algorithms.myalgo import MyAlgoTrainer
from nemo_rl.api.functional import create_trainer, trainer_class
import torch

class TestMyAlgoTrainer:
    def test_train_step_returns_loss(self):
        config = {"policy": {"model_name": sys.argv[1]}, "myalgo": {"my_param": 2.0}}
        batch = {"input_lengths": torch.tensor([3, 5])}
        trainer = MyAlgoTrainer(config)
        result = trainer._train_step(batch)
        assert "loss" in result and result["loss"] == 8.0
        assert isinstance(create_trainer(config), MyAlgoTrainer)

TestMyAlgoTrainer().test_train_step_returns_loss()
assert MyAlgoConfig().my_param == 1.0 and trainer_class("myalgo") is MyAlgoTrainer
trainer = MyAlgoTrainer.from_pretrained(sys.argv[1], my_param=3.0, max_steps=7)
assert trainer.config["myalgo"]["my_param"] == 3.0
assert trainer.section.max_num_steps == 7
"""


def test_a_package_of_ones_own_in_the_smallest_form(model, tmp_path) -> None:
    """Four files and two additions at the ends of ours, no table and no classes."""
    copy = copied(tmp_path)
    folder = copy / "nemo_rl" / "algorithms" / "myalgo"
    folder.mkdir()
    for name, code in SKETCH.items():
        (folder / name).write_text(code)
    for name, code in REGISTERED.items():
        with (copy / "nemo_rl" / name).open("a") as file:
            file.write(code)
    run_in(copy, TRY, model)


def _own_backends(_: Any) -> tuple[Any, ...]:
    """In a process of its own: names of backends are registered for good."""
    from nemo_rl.backends import get_generation_backend, get_training_backend
    from nemo_rl.backends.generation.base import (
        GenerationBackend,
        register_generation_backend,
    )
    from nemo_rl.backends.training.base import (
        TrainingBackend,
        register_training_backend,
    )

    @register_training_backend("custom")
    class CustomTrainingBackend(TrainingBackend):
        def setup(self, config):
            self.config = config

        def train_step(self, batch, loss_fn):
            return {"loss": loss_fn(batch, None)}

        def get_logprobs(self, batch):
            return batch["input_ids"] * 0.0

        def save_checkpoint(self, path):
            self.path = path

        def load_checkpoint(self, path):
            self.path = path

        def shutdown(self):
            self.config = None

    @register_generation_backend("custom")
    class CustomGenerationBackend(GenerationBackend):
        def setup(self, config):
            pass

        def generate(self, prompts, sampling_params):
            return prompts

        def update_weights(self, state_dict):
            self.weights = state_dict

        def shutdown(self):
            pass

    backend = get_training_backend("custom")
    backend.setup({"a": 1})
    loss = backend.train_step({}, lambda batch, output: 0.25)
    try:
        get_training_backend("custum")
    except ConfigurationError as error:
        message = str(error)
    names = type(backend).__name__, type(get_generation_backend("custom")).__name__
    return names, loss, message


def test_adding_backends() -> None:
    """docs/backends.md trains with a pair of them, in tests/functional."""
    ((names, loss, message),) = run_ranks(_own_backends, 1)
    assert names == ("CustomTrainingBackend", "CustomGenerationBackend")
    assert loss == {"loss": 0.25}
    assert "Did you mean custom?" in message and "dtensor, megatron" in message


def test_backends_are_protocols() -> None:
    from nemo_rl.backends.generation.base import GenerationBackend
    from nemo_rl.backends.training.base import TrainingBackend

    wanted = {
        TrainingBackend: {
            "setup": ["config"],
            "train_step": ["batch", "loss_fn"],
            "get_logprobs": ["batch"],
            "save_checkpoint": ["path"],
            "load_checkpoint": ["path"],
            "shutdown": [],
        },
        GenerationBackend: {
            "setup": ["config"],
            "generate": ["prompts", "sampling_params"],
            "update_weights": ["state_dict"],
            "shutdown": [],
        },
    }
    for protocol, methods in wanted.items():
        assert protocol._is_protocol
        for name, names in methods.items():
            assert required(getattr(protocol, name)) == names


def required(function: Any) -> list[str]:
    """Names of the parameters that have to be given, without self."""
    parameters = list(inspect.signature(function).parameters.values())
    return [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.name != "self"
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]


def test_selecting_backends() -> None:
    from nemo_rl.backends import get_generation_backend, get_training_backend

    training = get_training_backend("dtensor")
    assert type(training).__name__ == "DTensorBackend"
    assert type(get_training_backend("megatron")).__name__ == "MegatronBackend"
    generation = get_generation_backend("megatron")
    assert type(generation).__name__ == "MegatronInferenceBackend"
    with pytest.raises(ConfigurationError, match="'vllm' is not part of this version"):
        get_generation_backend("vllm")


def test_a_reward_as_a_callable(policy, config) -> None:
    from nemo_rl import GRPOTrainer

    def my_reward(prompt: str, response: str) -> float:
        return 1.0 if "correct" in response else 0.0

    trainer = GRPOTrainer(config, policy=policy)
    assert trainer.fit(dataset=ROWS, reward_fn=my_reward).metrics["reward"] == 0.0


def test_functional_reward_wrapper(policy, config) -> None:
    from nemo_rl import GRPOTrainer
    from nemo_rl.environments import FunctionalRewardWrapper
    from nemo_rl.environments.interfaces import EnvironmentInterface

    def score(p, r):
        return 0.25

    def batch_reward(prompts: list[str], responses: list[str]) -> list[float]:
        return [score(p, r) for p, r in zip(prompts, responses, strict=True)]

    env = FunctionalRewardWrapper(batch_reward, name="batch_scorer")
    assert env.name == "batch_scorer" and env.batched
    assert isinstance(FunctionalRewardWrapper(score), EnvironmentInterface)
    trainer = GRPOTrainer(config, policy=policy)
    assert trainer.fit(dataset=ROWS, reward_fn=env).metrics["reward"] == 0.25


def test_a_full_environment(policy, config) -> None:
    from nemo_rl import GRPOTrainer
    from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn

    class MyEnvironment(EnvironmentInterface):
        def _compute_rewards(self, message_log_batch):
            return [0.75 for _ in message_log_batch]

        def step(self, message_log_batch, metadata):
            rewards = self._compute_rewards(message_log_batch)

            return EnvironmentReturn(
                observations=[],
                metadata=[None] * len(message_log_batch),
                next_stop_strings=[None] * len(message_log_batch),
                rewards=torch.tensor(rewards),
                terminateds=torch.ones(len(message_log_batch), dtype=torch.bool),
                answers=None,
            )

        def global_post_process_and_metrics(self, batch):
            return batch, {"mean_reward": batch["rewards"].mean().item()}

    trainer = GRPOTrainer(config, policy=policy)
    result = trainer.fit(dataset=ROWS, reward_fn=MyEnvironment())
    assert result.metrics["mean_reward"] == result.metrics["reward"] == 0.75


def test_callbacks(policy, config, capsys) -> None:
    from nemo_rl import GRPOTrainer
    from nemo_rl.trainers.callbacks import Callback

    class MyCallback(Callback):
        def on_epoch_end(self, trainer, epoch, metrics):
            print(f"Epoch {epoch}: {metrics['loss']}")

    class LoggingCallback(Callback):
        def on_step_end(self, trainer, step, metrics):
            if step % 1 == 0:
                print(f"Step {step}: loss={metrics['loss']:.4f}")

    config["grpo"]["num_prompts_per_step"] = 8
    config["policy"]["train_global_batch_size"] = 16
    data = nemo_rl.DataModule(ROWS)
    GRPOTrainer(config, policy=SixteenRows(policy)).fit(
        data,
        reward_fn=lambda prompt, response: 0.0,
        callbacks=[MyCallback(), LoggingCallback()],
    )
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Step 1: loss=-?\d+\.\d{4}", lines[0])
    assert lines[1].startswith("Epoch 0: ")


class SixteenRows(OneWordPolicy):
    """An epoch in one step needs no model."""

    def __init__(self, _: Any) -> None:
        super().__init__([7])
