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
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
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
def ray_session(tmp_path_factory) -> Iterator[str]:
    """One Ray for the module, with a token; runs join it and leave it running."""
    import ray

    from nemo_rl.distributed import ray_session
    from nemo_rl.utils import env

    token = ray_session.create_token_file(tmp_path_factory.mktemp("token"))
    env.apply(ray_session.auth_env(token))
    ray_session._reload_auth()
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
    ray_session._forget_token()


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
    from nemo_rl.models.generation import VllmGeneration
    from nemo_rl.models.generation.vllm import VllmGeneration as TheSame

    assert VllmGeneration is TheSame and issubclass(VllmGeneration, GenerationInterface)


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
    with pytest.raises(
        ConfigurationError, match="activation_checkpointing is False an"
    ):
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
    [
        "algorithms",
        "converters",
        "data",
        "distributed",
        "environments",
        "evals",
        "experience",
        "metrics",
        "models",
        "utils",
    ],
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
    with pytest.raises(
        ResourceError, match="9.9 where the driver runs.*IGNORE_VERSION"
    ):
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
    try:
        result = nemo_rl.train(
            model=model,
            dataset=ROWS,
            reward_fn=lambda p, r: 1.0 if "correct" in r else 0.0,
            algorithm="grpo",
            **small,
        )
    finally:
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
        train_micro_batch_size=1,
        train_global_batch_size=2,
        max_total_sequence_length=64,
        max_new_tokens=4,
        **sections(tmp_path),
    )
    trainer = GRPOTrainer(trainer.config, policy=policy)
    dataset = tmp_path / "my-dataset.jsonl"
    dataset.write_text("\n".join(json.dumps(row) for row in ROWS))
    result = trainer.fit(dataset=str(dataset), reward_fn=lambda prompt, response: 0.5)
    assert result.metrics["reward"] == 0.5


@pytest.mark.parametrize(("name", "rows"), [("SFT", TALKS), ("DPO", PAIRS)])
def test_every_trainer_has_the_same_ways_in(name, rows, model, policy, tmp_path):
    import nemo_rl.algorithms

    trainer_class = getattr(nemo_rl, f"{name}Trainer")
    assert getattr(nemo_rl.algorithms, f"{name}Trainer") is trainer_class
    options = {"batch_size": 2, "max_steps": 1, "train_micro_batch_size": 1}
    trainer = trainer_class.from_pretrained(
        model, max_sequence_length=64, **options, **sections(tmp_path)
    )
    assert trainer.config == trainer_class.from_config(trainer.config.to_dict()).config
    result = trainer_class(trainer.config, policy=policy).fit(dataset=rows)
    assert result.steps == 1 and result.metrics["loss"] > 0


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


def _own_backends(_: Any) -> tuple[Any, ...]:  # noqa: C901 - methods of the sample
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
    assert type(get_generation_backend("vllm")).__name__ == "VLLMBackend"


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


# The configuration reference.


def test_function_parameters() -> None:
    """The values of the sample, which are the defaults, in their places."""
    from nemo_rl.api.functional import build_config

    config = build_config(
        "Qwen/Qwen2.5-1.5B",
        algorithm="grpo",
        max_steps=1000,
        learning_rate=1e-6,
        batch_size=32,
        gpus_per_node=8,
    )
    given = config.to_dict()
    given["policy"]["learning_rate"] = None
    default = build_config("Qwen/Qwen2.5-1.5B", gpus_per_node=8).to_dict()
    default["policy"]["train_global_batch_size"] = 32 * 16
    assert given == default


def test_a_trainer_from_a_dictionary() -> None:
    from nemo_rl import GRPOTrainer

    config = {
        "policy": {"model_name": "Qwen/Qwen2.5-1.5B", "learning_rate": 1e-6},
        "grpo": {"num_prompts_per_step": 32, "num_generations_per_prompt": 16},
    }
    trainer = GRPOTrainer(config)
    assert trainer.config.policy.optimizer.kwargs.lr == 1e-6
    assert trainer.config.samples_per_step == 512


def test_a_trainer_from_a_yaml_file(tmp_path) -> None:
    from omegaconf import OmegaConf

    from nemo_rl import GRPOTrainer

    path = tmp_path / "config.yaml"
    path.write_text(
        "policy: {model_name: my-model, learning_rate: 2.0e-6}\n"
        "grpo: {max_num_steps: 7}\n"
        "checkpointing: {save_period: '${grpo.max_num_steps}'}\n"
    )
    cfg = OmegaConf.load(path)
    trainer = GRPOTrainer.from_config(cfg)
    assert trainer.config.policy.optimizer.kwargs.lr == 2e-6
    assert trainer.section.max_num_steps == 7
    assert trainer.config.checkpointing.save_period == 7


def test_an_invalid_configuration_is_a_value_error() -> None:
    from nemo_rl import GRPOTrainer

    with pytest.raises(ValueError, match="policy.model_name.*is empty"):
        GRPOTrainer({"policy": {"model_name": ""}})


SECTIONS: dict[str, dict[str, Any]] = {
    "policy": {
        "train_global_batch_size": 512,
        "train_micro_batch_size": 4,
        "max_total_sequence_length": 512,
        "precision": "bfloat16",
        "max_grad_norm": 1.0,
        "optimizer": {
            "name": "torch.optim.AdamW",
            "kwargs": {"lr": 1e-6, "weight_decay": 0.01, "betas": [0.9, 0.999]},
        },
        "scheduler": [
            {
                "name": "torch.optim.lr_scheduler.LinearLR",
                "kwargs": {"start_factor": 0.1, "total_iters": 50},
            }
        ],
        "dtensor_cfg": {
            "enabled": True,
            "cpu_offload": False,
            "tensor_parallel_size": 1,
            "context_parallel_size": 1,
            "activation_checkpointing": False,
            "sequence_parallel": False,
        },
        "megatron_cfg": {
            "enabled": True,
            "tensor_model_parallel_size": 4,
            "pipeline_model_parallel_size": 2,
            "activation_checkpointing": True,
        },
        "generation": {
            "backend": "vllm",
            "max_new_tokens": 512,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": None,
            "vllm_cfg": {
                "tensor_parallel_size": 1,
                "gpu_memory_utilization": 0.6,
                "enforce_eager": False,
            },
        },
        "sequence_packing": {
            "enabled": True,
            "algorithm": "modified_first_fit_decreasing",
            "sequence_length_round": 64,
        },
    },
    "grpo": {
        "num_prompts_per_step": 32,
        "num_generations_per_prompt": 16,
        "max_num_steps": 1000,
        "max_num_epochs": 1,
        "normalize_rewards": True,
        "use_leave_one_out_baseline": True,
        "val_period": 10,
        "val_at_start": False,
        "max_val_samples": 256,
        "seed": 42,
    },
    "sft": {"batch_size": 32, "max_num_steps": 5000, "max_num_epochs": 3},
    "dpo": {"batch_size": 32, "max_num_steps": 1000, "beta": 0.1},
    "checkpointing": {
        "enabled": True,
        "checkpoint_dir": "results/grpo",
        "metric_name": "val:accuracy",
        "higher_is_better": True,
        "keep_top_k": 3,
        "save_period": 10,
    },
    "logger": {
        "log_dir": "logs",
        "wandb_enabled": False,
        "tensorboard_enabled": True,
        "mlflow_enabled": False,
        "monitor_gpus": True,
        "wandb": {"project": "my-project", "name": "run-001"},
        "tensorboard": {},
    },
    "cluster": {"gpus_per_node": 8, "num_nodes": 1},
}
"""Section -> documented key -> documented value."""

DIFFERENT: dict[str, tuple[Any, str]] = {
    "policy.scheduler": (
        None,
        "the sample's warm-up; without one the rate is constant",
    ),
    "policy.dtensor_cfg.enabled": (False, "one training engine is on: Megatron"),
    "policy.megatron_cfg.enabled": (
        None,
        "None means on, unless dtensor_cfg or training_backend names another engine",
    ),
    "policy.megatron_cfg.tensor_model_parallel_size": (1, "the sample's layout"),
    "policy.megatron_cfg.pipeline_model_parallel_size": (1, "the sample's layout"),
    "policy.megatron_cfg.activation_checkpointing": (False, "the sample saves memory"),
    "policy.generation.backend": (
        None,
        "None samples with the training engine's weights, which nothing has to move",
    ),
    "policy.sequence_packing.enabled": (False, "not available; batches are padded"),
    "logger.wandb.project": ("nemo-rl", "the sample's project"),
    "logger.wandb.name": (None, "the sample's run; None lets the service choose"),
}
"""Documented key -> our default, and why the sample's value is not it."""


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


KEYS = dict(leaves(SECTIONS))


def default_of(path: str) -> Any:
    from nemo_rl.algorithms.dpo.config import DPOMasterConfig
    from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
    from nemo_rl.algorithms.sft.config import SFTMasterConfig

    classes = {"sft": SFTMasterConfig, "dpo": DPOMasterConfig}
    cls = classes.get(path.partition(".")[0], GRPOMasterConfig)
    value: Any = cls.from_mapping({"policy": {"model_name": "m"}}).to_dict()
    for part in path.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("path", KEYS)
def test_a_documented_key_has_its_documented_default(path: str) -> None:
    if path in DIFFERENT:
        ours, reason = DIFFERENT[path]
        assert default_of(path) == ours != KEYS[path] and reason
    else:
        assert default_of(path) == KEYS[path]


def test_differences_are_of_documented_keys() -> None:
    assert set(DIFFERENT) <= set(KEYS)


UNAVAILABLE = {
    "packing": (
        {"sequence_packing": SECTIONS["policy"]["sequence_packing"]},
        "sequence_packing.enabled=True is not available in this version. Set it to",
    ),
    "two engines": (
        {"dtensor_cfg": {"enabled": True}, "megatron_cfg": {"enabled": True}},
        "dtensor_cfg.enabled and megatron_cfg.enabled choose different",
    ),
}


@pytest.mark.parametrize("case", UNAVAILABLE)
def test_a_documented_value_that_cannot_be(case: str) -> None:
    from nemo_rl.algorithms.grpo.config import GRPOMasterConfig

    section, message = UNAVAILABLE[case]
    with pytest.raises(ConfigurationError) as caught:
        GRPOMasterConfig.from_mapping({"policy": {"model_name": "m", **section}})
    assert message in str(caught.value).replace("\n", " ")


def test_every_other_documented_value_is_a_recipe() -> None:
    from nemo_rl.api.functional import create_trainer, to_config

    policy = {"model_name": "m", **SECTIONS["policy"]}
    generation = policy.pop("generation")
    dtensor = policy.pop("dtensor_cfg")
    megatron = policy.pop("megatron_cfg")
    del policy["sequence_packing"]
    common = {key: SECTIONS[key] for key in ("checkpointing", "logger", "cluster")}
    grpo = {
        "policy": {**policy, "generation": generation, "megatron_cfg": megatron},
        "grpo": SECTIONS["grpo"],
        **common,
    }
    config = create_trainer(grpo).config
    assert config.parallel_dims.dp == 1
    assert config.policy.scheduler[0].kind == "LinearLR"
    del grpo["policy"]["generation"], grpo["policy"]["megatron_cfg"]
    grpo["policy"]["dtensor_cfg"] = dtensor
    assert to_config(grpo, "grpo").parallel_dims.dp == 8
    for algorithm in ("sft", "dpo"):
        own = {"policy": {"model_name": "m"}, algorithm: SECTIONS[algorithm], **common}
        assert to_config(own, algorithm).policy.train_global_batch_size == 32


PARAMETERS = {
    "grpo": {
        "learning_rate": ("policy.optimizer.kwargs.lr", 1e-6),
        "max_sequence_length": ("policy.max_total_sequence_length", 512),
        "precision": ("policy.precision", "bfloat16"),
        "batch_size": ("grpo.num_prompts_per_step", 32),
        "max_steps": ("grpo.max_num_steps", 1000),
        "max_epochs": ("grpo.max_num_epochs", 1),
        "num_generations_per_prompt": ("grpo.num_generations_per_prompt", 16),
        "normalize_rewards": ("grpo.normalize_rewards", True),
        "use_leave_one_out_baseline": ("grpo.use_leave_one_out_baseline", True),
    },
    "dpo": {"beta": ("dpo.beta", 0.1)},
}
"""Algorithm -> keyword of train() -> its key and documented default."""


@pytest.mark.parametrize("algorithm", PARAMETERS)
def test_common_parameters(algorithm: str) -> None:
    from nemo_rl.api.functional import build_config

    assert required(nemo_rl.train) == ["model"]
    for keyword, (path, default) in PARAMETERS[algorithm].items():
        assert default_of(path) == default, keyword
        wanted = "float32" if keyword == "precision" else type(default)(default * 2)
        if default is True:
            wanted = False
        given = {keyword: wanted, "gpus_per_node": 8}
        value: Any = build_config("m", algorithm, **given)
        for part in path.split("."):
            value = value[part]
        assert value == wanted


def test_environment_variables(monkeypatch, tmp_path, caplog) -> None:
    from nemo_rl.config.master import OpenMasterConfig
    from nemo_rl.distributed import ray_session
    from nemo_rl.trainers.summary import run_facts
    from nemo_rl.utils.env import VARIABLES

    def connect() -> None:
        with pytest.raises(ConfigurationError, match="token file of Ray"):
            ray_session.connect("127.0.0.1:1", token_file=tmp_path / "absent")

    # Telemetry is off, unless its variable says otherwise.
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    connect()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    connect()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    # There is nothing to rebuild, which is said.
    assert not caplog.messages
    monkeypatch.setenv("NRL_FORCE_REBUILD_VENVS", "1")
    connect()
    assert "Install anew with `make setup`" in caplog.messages[0]
    # The image says that it is one; the head of a run shows it.
    dockerfile = (ROOT / "containers" / "Dockerfile").read_text(encoding="utf-8")
    assert "NRL_CONTAINER=1" in dockerfile
    trainer = SimpleNamespace(
        config=OpenMasterConfig.from_mapping({"policy": {"model_name": "m"}}),
        data=ROWS,
        logger=SimpleNamespace(log_dir="logs"),
    )
    monkeypatch.delenv("NRL_CONTAINER", raising=False)
    assert "container" not in run_facts(trainer)
    monkeypatch.setenv("NRL_CONTAINER", "1")
    assert run_facts(trainer)["container"] == "yes"
    # NRL_IGNORE_VERSION_MISMATCH: test_setting_up_a_worker_group.
    assert set(VARIABLES) > {
        "NRL_CONTAINER",
        "NRL_FORCE_REBUILD_VENVS",
        "NRL_IGNORE_VERSION_MISMATCH",
        "RAY_USAGE_STATS_ENABLED",
    }


# Models and policies.


def test_policy_and_generation_interfaces() -> None:
    from nemo_rl.models.generation.interfaces import GenerationInterface
    from nemo_rl.models.policy.interfaces import PolicyInterface

    parameters = {
        (PolicyInterface, "generate"): ["self", "data", "greedy"],
        (PolicyInterface, "get_logprobs"): ["self", "data"],
        (PolicyInterface, "get_reference_logprobs"): ["self", "data"],
        (PolicyInterface, "train"): ["self", "data", "loss_fn"],
        (GenerationInterface, "generate"): ["self", "data", "greedy"],
        (GenerationInterface, "prepare_for_generation"): ["self", "args", "kwargs"],
        (GenerationInterface, "finish_generation"): ["self", "args", "kwargs"],
    }
    for (cls, name), names in parameters.items():
        method = getattr(cls, name)
        assert list(inspect.signature(method).parameters) == names
        # A policy without a reference is one, as the custom policy below.
        assert (name in cls.__abstractmethods__) == (name != "get_reference_logprobs")
    import nemo_rl.models.interfaces as second

    assert second.PolicyInterface is PolicyInterface


def test_data_specifications() -> None:
    from nemo_rl.data.interfaces import LogprobsSpec, TrainingDatumSpec
    from nemo_rl.models.generation.interfaces import (
        GenerationConfig,
        GenerationDatumSpec,
        GenerationOutputSpec,
    )

    fields = {
        GenerationDatumSpec: "input_ids attention_mask __extra__",
        GenerationOutputSpec: "output_ids generation_lengths "
        "unpadded_sequence_lengths logprobs __extra__",
        TrainingDatumSpec: "input_ids",
        LogprobsSpec: "logprobs",
    }
    for spec, names in fields.items():
        assert set(names.split()) <= set(spec.__annotations__)
    options = "backend max_new_tokens temperature top_p top_k model_name"
    assert set(options.split()) <= set(GenerationConfig.model_fields)
    config = GenerationConfig(
        backend="hf", max_new_tokens=8, temperature=0.7, top_p=1.0, top_k=5,
        model_name="m",
    )  # fmt: skip
    assert config["top_k"] == 5


def pairs() -> Any:
    """Two pairs of five tokens, with a reference."""
    from nemo_rl.distributed import BatchedDataDict

    ids = torch.arange(3, 23).reshape(4, 5)
    return BatchedDataDict(
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "input_lengths": torch.full((4,), 5),
            "token_mask": torch.tensor([[0.0, 0, 1, 1, 1]] * 4),
            "sample_mask": torch.ones(4),
            "reference_policy_logprobs": torch.full((4, 5), -4.0),
            "generation_logprobs": torch.full((4, 5), -4.0),
            "prev_logprobs": torch.full((4, 5), -4.0),
            "advantages": torch.ones(4, 5),
        }
    )


SMALL = {"max_total_sequence_length": 32, "train_micro_batch_size": 1}
PROMPTS = {
    "input_ids": torch.tensor([[11, 12, 13, 14], [15, 16, 17, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}


def _hugging_face(_: Any, model: str) -> dict[str, Any]:
    from nemo_rl.algorithms import DPOLossFn
    from nemo_rl.distributed import BatchedDataDict
    from nemo_rl.models import HuggingFacePolicy
    from nemo_rl.models.validation import validate_log_probability_consistency

    policy = HuggingFacePolicy(
        model_name=model,
        torch_dtype="bfloat16",
        device_map="auto",
        trust_remote_code=False,
        load_in_8bit=False,
        load_in_4bit=False,
        generation={"max_new_tokens": 4},
        **SMALL,
    )
    batch = BatchedDataDict(PROMPTS)
    generations = policy.generate(batch, greedy=False)
    logprobs = policy.get_logprobs(batch)
    # The pipeline: what was generated is scored by the policy and by the reference.
    scored = policy.get_logprobs(generations)
    ref_logprobs = policy.get_reference_logprobs(generations)
    loss = policy.train(pairs(), DPOLossFn())
    is_consistent = validate_log_probability_consistency(
        training_backend=policy,
        inference_backend=policy,
        test_data=batch,
        threshold=1.05,
    )
    # The first column has no log-probability, nor has padding.
    after = policy.get_logprobs(generations)
    policy.shutdown()
    return {
        "shapes": (generations["output_ids"].shape, logprobs["logprobs"].shape),
        "lengths": generations["generation_lengths"].tolist(),
        "first": (scored["logprobs"], ref_logprobs["reference_policy_logprobs"]),
        "loss": loss["loss"],
        "consistent": is_consistent,
        "moved": not torch.equal(after["logprobs"], scored["logprobs"]),
    }


def test_hugging_face_backend_and_the_training_pipeline(model) -> None:
    (found,) = run_ranks(_hugging_face, 1, model)
    (rows, columns), scored = found["shapes"]
    assert rows == 2 and 5 <= columns <= 8 and scored == (2, 4)
    assert all(1 <= length <= 4 for length in found["lengths"])
    # Before the first update policy and reference are one.
    assert torch.equal(*found["first"])
    assert found["loss"] > 0 and found["consistent"] and found["moved"]


def _megatron(_: Any, model: str) -> dict[str, Any]:
    from nemo_rl.algorithms import GRPOLossFn
    from nemo_rl.distributed import BatchedDataDict
    from nemo_rl.models import MegatronPolicy

    policy = MegatronPolicy(
        model_name=model,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        sequence_parallel=False,
        use_flash_attention=False,
        precision="float32",
        generation={"max_new_tokens": 4},
        **SMALL,
    )
    batch = BatchedDataDict(PROMPTS)
    generations = policy.generate(batch, greedy=False)
    logprobs = policy.get_logprobs(generations)["logprobs"]
    loss = policy.train(pairs(), GRPOLossFn())
    policy.shutdown()
    sampled = generations["logprobs"] != 0
    error = (logprobs - generations["logprobs"])[sampled].abs().max().item()
    return {"error": error, "loss": loss["loss"]}


def test_megatron_backend(model) -> None:
    (found,) = run_ranks(_megatron, 1, model)
    assert found["error"] < 1e-4 and found["loss"] == found["loss"]


def _generation(_: Any, model: str) -> tuple[Any, ...]:
    from nemo_rl.distributed import BatchedDataDict, LocalCluster
    from nemo_rl.models.generation import GenerationConfig, HuggingFaceGeneration

    config = GenerationConfig(
        model_name=model,
        max_new_tokens=5,
        temperature=0.7,
        top_p=1,
        top_k=None,
        backend="hf",
        vllm_cfg={
            "tensor_parallel_size": 1,
            "gpu_memory_utilization": 0.8,
            "max_model_len": 2048,
        },
    )
    cluster = LocalCluster()
    generator = HuggingFaceGeneration(cluster, config, precision="float32", **SMALL)
    input_data = BatchedDataDict(
        {
            "input_ids": torch.tensor([[1, 2, 3, 4]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1]]),
        }
    )
    generator.prepare_for_generation()
    output = generator.generate(input_data, greedy=False)
    generator.finish_generation()
    generator.shutdown()
    names = {"output_ids", "generation_lengths", "unpadded_sequence_lengths"}
    return names <= set(output), int(output["generation_lengths"][0])


def test_generation_with_a_cluster_and_a_configuration(model) -> None:
    ((complete, length),) = run_ranks(_generation, 1, model)
    assert complete and 1 <= length <= 5


@pytest.mark.slow
def test_generation_with_vllm(vllm_model, ray_session, monkeypatch) -> None:
    from nemo_rl.distributed import BatchedDataDict, RayVirtualCluster
    from nemo_rl.models.generation import VllmConfig, VllmGeneration

    monkeypatch.setenv("RAY_ADDRESS", ray_session)
    config = VllmConfig(
        model_name=vllm_model,
        max_new_tokens=5,
        temperature=0.7,
        top_p=1,
        top_k=None,
        backend="vllm",
        vllm_cfg={
            "tensor_parallel_size": 1,
            "gpu_memory_utilization": 0.8,
            "max_model_len": 32,
        },
    )
    cluster = RayVirtualCluster([1], use_gpus=False)
    generator = VllmGeneration(cluster, config)
    input_data = BatchedDataDict(
        {
            "input_ids": torch.tensor([[1, 2, 3, 4]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1]]),
        }
    )
    generator.prepare_for_generation()
    output = generator.generate(input_data, greedy=False)
    generator.finish_generation()
    generator.shutdown()
    cluster.shutdown()
    assert {"output_ids", "unpadded_sequence_lengths"} <= set(output)
    assert 1 <= int(output["generation_lengths"][0]) <= 5


@pytest.fixture(scope="module")
def vllm_model(tmp_path_factory) -> str:
    """Heads of 32 channels, the least that vLLM has CPU kernels for."""
    folder = tmp_path_factory.mktemp("pages") / "vllm"
    models.save(folder, "llama", layers=2, hidden=64, heads=2, kv_heads=1)
    return str(folder)


def _vllm_worker(model: str) -> tuple[bool, bool]:
    from safetensors.torch import load_file

    from nemo_rl.models.generation import VllmGenerationWorker

    worker = VllmGenerationWorker(model_name=model, max_new_tokens=5, max_model_len=32)
    prompts = torch.tensor([[1, 2, 3, 4]])
    before = worker.generate(prompts, greedy=True)["logprobs"]
    weights_handle = load_file(Path(model) / "model.safetensors")
    worker.update_weights({name: w * 2 for name, w in weights_handle.items()})
    changed = worker.generate(prompts, greedy=True)["logprobs"]
    worker.update_weights(weights_handle)
    after = worker.generate(prompts, greedy=True)["logprobs"]
    worker.shutdown()
    return torch.equal(before, after), not torch.equal(before, changed)


@pytest.mark.slow
def test_the_worker_of_vllm(vllm_model) -> None:
    # Begun afresh: an engine does not start in a fork of a process with threads.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(_vllm_worker, vllm_model).result() == (True, True)


REFUSED = {
    "trust_remote_code": "code of a model folder is never run. Use a model that trans",
    "load_in_8bit": "all weights are trained, in policy.precision 'bfloat16'",
    "load_in_4bit": "all weights are trained, in policy.precision 'bfloat16'",
}


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_of_transformers_that_cannot_be(option: str, model) -> None:
    from nemo_rl.models import HuggingFacePolicy

    with pytest.raises(ConfigurationError, match=f"{option}=True is not avai") as found:
        HuggingFacePolicy(model, **{option: True})
    assert REFUSED[option] in str(found.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("sequence_parallel", "is not available in this version. Set it to false"),
        ("use_flash_attention", "Set layer_spec='te', or leave both out"),
    ],
)
def test_an_option_of_megatron_that_cannot_be(option, message, model) -> None:
    from nemo_rl.models import MegatronPolicy

    with pytest.raises(ConfigurationError, match=message):
        MegatronPolicy(model, **{option: True})


def test_a_layout_for_eight_workers_is_checked_against_the_model(model) -> None:
    from nemo_rl.models import MegatronPolicy
    from tests.fakes.workers import FakeCluster

    layout = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 4}
    with pytest.raises(ConfigurationError, match="=4 does not divide the 2 layers"):
        MegatronPolicy(model, cluster=FakeCluster(8), **layout, **SMALL)
    layout["pipeline_model_parallel_size"] = 2
    policy = MegatronPolicy(model, cluster=FakeCluster(4), **layout, **SMALL)
    assert (policy.dims.tp, policy.dims.pp) == (2, 2)


def test_generation_options(model) -> None:
    from nemo_rl.models.generation import HuggingFaceGeneration
    from tests.fakes.workers import FakeCluster

    gen_config = {
        "max_new_tokens": 512,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 50,
        "repetition_penalty": 1.1,
        "do_sample": True,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    cluster = FakeCluster(1)
    gen_config["model_name"] = model
    options = {"max_total_sequence_length": 256}
    with pytest.raises(
        ConfigurationError, match="repetition_penalty=1.1 is not availa"
    ):
        HuggingFaceGeneration(cluster, gen_config, **options)
    gen_config["repetition_penalty"] = 1.0
    gen_config["max_new_tokens"] = 128
    generator = HuggingFaceGeneration(cluster, gen_config, **options)
    section = generator.policy.config.generation
    assert (section.temperature, section.top_p, section.top_k) == (0.7, 0.9, 50)
    assert section.stop_token_ids == [2]


def test_validation_and_diagnostics_take_what_is_documented() -> None:
    from nemo_rl.models import validation

    check = validation.validate_log_probability_consistency
    parameters = inspect.signature(check).parameters
    assert list(parameters) == [
        "training_backend", "inference_backend", "test_data", "threshold",
    ]  # fmt: skip
    assert parameters["threshold"].default == 1.05
    # tests/unit/models/test_validation.py runs all three on a real model.
    for name in ("test_max_model_len_respected", "test_generation_consistency"):
        assert required(getattr(validation, name)) == ["model_name"]


def _own_policy(_: Any, model: str) -> dict[str, Any]:  # noqa: C901 - as above
    import transformers

    from nemo_rl.algorithms import NLLLossFn
    from nemo_rl.backends.training.base import LossFunction, ModelOutput
    from nemo_rl.data.interfaces import TrainingDatumSpec
    from nemo_rl.distributed import BatchedDataDict
    from nemo_rl.models.generation.interfaces import (
        GenerationDatumSpec,
        GenerationInterface,
    )
    from nemo_rl.models.interfaces import PolicyInterface

    def load_custom_model(path):
        return transformers.AutoModelForCausalLM.from_pretrained(path)

    class CustomPolicy(PolicyInterface):
        def __init__(self, model_path: str):
            self.model = load_custom_model(model_path)

        def generate(self, data: BatchedDataDict[GenerationDatumSpec], greedy: bool):
            input_ids = data["input_ids"]
            outputs = self.model.generate(
                input_ids,
                max_new_tokens=data.get("max_new_tokens", 5),
                do_sample=not greedy,
                temperature=data.get("temperature", 0.7),
            )
            lengths = [len(o) - len(i) for o, i in zip(outputs, input_ids, strict=True)]
            return BatchedDataDict(
                {
                    "output_ids": outputs,
                    "generation_lengths": torch.tensor(lengths),
                    "unpadded_sequence_lengths": torch.tensor(
                        [len(o) for o in outputs]
                    ),
                }
            )

        def get_logprobs(self, data: BatchedDataDict[GenerationDatumSpec]):
            input_ids = data["input_ids"]
            with torch.no_grad():
                outputs = self.model(input_ids)
                logprobs = torch.log_softmax(outputs.logits, dim=-1)
            return BatchedDataDict({"logprobs": logprobs})

        def train(
            self, data: BatchedDataDict[TrainingDatumSpec], loss_fn: LossFunction
        ):
            ids = data["input_ids"]
            scores = torch.log_softmax(self.model(ids).logits[:, :-1], -1)
            chosen = scores.gather(-1, ids[:, 1:, None])[..., 0]
            output = ModelOutput(torch.nn.functional.pad(chosen, (1, 0)))
            counts = {"global_valid_tokens": data["token_mask"].sum()}
            loss, _ = loss_fn({**data, **counts}, output)
            loss.backward()
            return {"loss": loss.item()}

    class CustomGeneration(GenerationInterface):
        def __init__(self, model_name: str, **kwargs):
            self.model = load_custom_model(model_name)

        def generate(self, data: BatchedDataDict[GenerationDatumSpec], greedy: bool):
            return CustomPolicy.generate(self, data, greedy)

        def prepare_for_generation(self):
            self.model.eval()

        def finish_generation(self):
            self.model.train()

    policy, generator = CustomPolicy(model), CustomGeneration(model, dtype="float32")
    prompts = BatchedDataDict({"input_ids": torch.tensor([[11, 12], [13, 14]])})
    generator.prepare_for_generation()
    output = generator.generate(prompts, greedy=True)
    generator.finish_generation()
    try:
        policy.get_reference_logprobs(prompts)
    except ConfigurationError as error:
        message = str(error)
    return {
        "same": torch.equal(
            output["output_ids"], policy.generate(prompts, greedy=True)["output_ids"]
        ),
        "vocabulary": policy.get_logprobs(prompts)["logprobs"].shape[-1],
        "loss": policy.train(pairs(), NLLLossFn())["loss"],
        "message": message,
    }


def test_a_policy_and_a_generator_of_ones_own(model) -> None:
    (found,) = run_ranks(_own_policy, 1, model)
    assert found["same"] and found["vocabulary"] == 131 and found["loss"] > 0
    assert "CustomPolicy defines no get_reference_logprobs" in found["message"]


# The table of all names.

TABLE = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs" / "seed-coverage.md").read_text("utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| page")
]
NAMES = [row for row in TABLE if row[1].startswith("`nemo_rl.") and "(" not in row[1]]


def found(path: str) -> Any:
    """The object of "package.module.Class.attribute", or of "module:Class.field"."""
    module, colon, rest = path.strip("`").partition(":")
    parts = rest.split(".") if colon else []
    while True:
        try:
            value: Any = import_module(module)
            break
        except ModuleNotFoundError as error:
            if colon or not module.startswith(error.name or module):
                raise
            module, _, last = module.rpartition(".")
            parts.insert(0, last)
    for part in parts:
        fields = getattr(value, "model_fields", {})
        value = fields[part] if part in fields else getattr(value, part)
    return value


@pytest.mark.parametrize("row", NAMES, ids=lambda row: row[1].strip("`"))
def test_a_documented_name_is_where_the_table_says(row: list[str]) -> None:
    _, documented, home, _ = row
    if "not in this version" in home:
        with pytest.raises((ImportError, AttributeError)):
            found(documented)
    else:
        # Not `is`: a method is bound anew every time it is read.
        assert found(documented) == found(home)


def test_every_home_and_every_test_of_the_table_exists() -> None:
    for _, _, home, test in TABLE:
        if re.fullmatch(r"`nemo_rl[\w.]+(:[\w.]+)?`", home):
            assert found(home) is not None
        path, _, function = test.strip("`").rpartition("::")
        source = (ROOT / (path or "tests/unit/test_seed_pages.py")).read_text("utf-8")
        assert f"\ndef {function}(" in source, test


def test_the_table_is_complete() -> None:
    from tests.unit.test_public_api import DOCUMENTED

    listed = {row[1].strip("`") for row in TABLE}
    public = {path.replace(":", ".") for path in DOCUMENTED}
    layout = {f"nemo_rl.{m}.{n}" for m, ns in LAYOUT.items() for n in ns.split()}
    keywords = {f"nemo_rl.train({k}=)" for ks in PARAMETERS.values() for k in ks}
    assert public | layout | set(KEYS) | keywords <= listed
    own = re.findall(r"^def (test_\w+)", Path(__file__).read_text("utf-8"), flags=re.M)
    used = {row[3].strip("`") for row in TABLE}
    about_the_table = {name for name in own if "table" in name}
    assert set(own) - about_the_table <= used
