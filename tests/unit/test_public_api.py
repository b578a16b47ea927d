"""The public surface: documented import paths, and what importing them costs."""

import subprocess
import sys
from importlib import import_module

import pytest

import nemo_rl

DOCUMENTED = [
    "nemo_rl:train",
    "nemo_rl:DPOTrainer",
    "nemo_rl:GRPOTrainer",
    "nemo_rl:SFTTrainer",
    "nemo_rl:DataModule",
    "nemo_rl:TrainResult",
    "nemo_rl.algorithms:DPO",
    "nemo_rl.algorithms:DPOLossFn",
    "nemo_rl.algorithms:DPOTrainer",
    "nemo_rl.algorithms:SFT",
    "nemo_rl.algorithms:SFTTrainer",
    "nemo_rl.algorithms:GRPO",
    "nemo_rl.algorithms:GRPOConfig",
    "nemo_rl.algorithms:GRPOTrainer",
    "nemo_rl.algorithms.grpo:GRPOConfig",
    "nemo_rl.algorithms.grpo:GRPOTrainer",
    "nemo_rl.algorithms.grpo.config:GRPOConfig",
    "nemo_rl.algorithms.grpo.data:build_train_batch",
    "nemo_rl.algorithms.grpo.loss:GRPOLossFn",
    "nemo_rl.algorithms.grpo.trainer:GRPOTrainer",
    "nemo_rl.algorithms.interfaces:AlgorithmInterface",
    "nemo_rl.algorithms.interfaces:LossFunctionInterface",
    "nemo_rl.algorithms.rollout:RolloutEngine",
    "nemo_rl.api.functional:_ALGORITHM_REGISTRY",
    "nemo_rl.api.train:train",
    "nemo_rl.backends:get_generation_backend",
    "nemo_rl.backends:get_training_backend",
    "nemo_rl.backends.generation.base:GenerationBackend",
    "nemo_rl.backends.generation.base:register_generation_backend",
    "nemo_rl.backends.training.base:TrainingBackend",
    "nemo_rl.backends.training.base:register_training_backend",
    "nemo_rl.backends.generation.hf:HFBackend",
    "nemo_rl.backends.training.dtensor:DTensorBackend",
    "nemo_rl.backends.training.megatron:MegatronBackend",
    "nemo_rl.config.base:BaseConfig",
    "nemo_rl.config.cluster:ClusterConfig",
    "nemo_rl.config.policy:PolicyConfig",
    "nemo_rl.config.training:DPOConfig",
    "nemo_rl.config.training:GRPOConfig",
    "nemo_rl.config.training:SFTConfig",
    "nemo_rl.data.datasets:DatasetInterface",
    "nemo_rl.data.datasets:load_dataset",
    "nemo_rl.data.llm_message_utils:format_messages",
    "nemo_rl.data.module:DataModule",
    "nemo_rl.distributed:BatchedDataDict",
    "nemo_rl.distributed:RayVirtualCluster",
    "nemo_rl.distributed:RayWorkerGroup",
    "nemo_rl.distributed.virtual_cluster:RayVirtualCluster",
    "nemo_rl.distributed.worker_groups:RayWorkerGroup",
    "nemo_rl.environments:FunctionalRewardWrapper",
    "nemo_rl.environments:SlidingPuzzleEnvironment",
    "nemo_rl.environments.math_environment:MathEnvironment",
    "nemo_rl.environments.interfaces:EnvironmentInterface",
    "nemo_rl.environments.interfaces:EnvironmentReturn",
    "nemo_rl.evals:EvalResult",
    "nemo_rl.evals:evaluate",
    "nemo_rl.infra.checkpointing:CheckpointManager",
    "nemo_rl.infra.logging:LoggerFacade",
    "nemo_rl.infra.resources:ResourceManager",
    "nemo_rl.models:HuggingFacePolicy",
    "nemo_rl.models:MegatronPolicy",
    "nemo_rl.models.generation:HuggingFaceGeneration",
    "nemo_rl.models.generation.interfaces:GenerationConfig",
    "nemo_rl.models.generation.interfaces:GenerationDatumSpec",
    "nemo_rl.models.generation.interfaces:GenerationInterface",
    "nemo_rl.models.generation.interfaces:GenerationOutputSpec",
    "nemo_rl.models.interfaces:PolicyInterface",
    "nemo_rl.models.policy:Policy",
    "nemo_rl.models.policy.interfaces:PolicyInterface",
    "nemo_rl.models.policy.lm_policy:Policy",
    "nemo_rl.models.validation:test_generation_consistency",
    "nemo_rl.models.validation:test_max_model_len_respected",
    "nemo_rl.models.validation:validate_log_probability_consistency",
    "nemo_rl.trainers.base:BaseTrainer",
    "nemo_rl.trainers.callbacks:Callback",
    "nemo_rl.trainers.validation:ValidationRunner",
    "nemo_rl.utils.config:Config",
    "nemo_rl.utils.exceptions:ConfigurationError",
    "nemo_rl.utils.exceptions:ResourceError",
    "nemo_rl.utils.exceptions:TrainingError",
    "nemo_rl.utils.logger:setup_logger",
]

HEAVY = ("torch", "ray", "transformers", "megatron", "vllm", "datasets")

LOGIN_NODE = [
    "nemo_rl",
    "nemo_rl.config",
    "nemo_rl.config.validation",
    "nemo_rl.config.loading",
    "nemo_rl.config.keywords",
    "nemo_rl.api.functional",
    "nemo_rl.api.train",
    "nemo_rl.algorithms",
    "nemo_rl.algorithms.grpo.config",
    "nemo_rl.algorithms.sft.config",
    "nemo_rl.algorithms.dpo.config",
    "nemo_rl.evals.cli",
    "nemo_rl.evals.config",
    "nemo_rl.launch.__main__",
    "nemo_rl.launch.driver",
    "nemo_rl.launch.node",
]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("path", DOCUMENTED)
def test_documented_name_resolves(path: str) -> None:
    module, _, name = path.partition(":")
    assert getattr(import_module(module), name) is not None


def test_importing_is_fast() -> None:
    code = (
        "import time; t = time.perf_counter(); import nemo_rl; "
        "print(time.perf_counter() - t)"
    )
    assert min(float(run(code)) for _ in range(3)) < 0.15


@pytest.mark.parametrize("module", LOGIN_NODE)
def test_login_node_modules_load_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, importlib; importlib.import_module({module!r}); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert run(code) == "[]"


def test_reading_a_recipe_loads_nothing_heavy() -> None:
    code = (
        "import sys; from nemo_rl.api.functional import build_config; "
        "build_config('m', gpus_per_node=8); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert run(code) == "[]"


def test_exports_are_listed_and_versioned() -> None:
    assert nemo_rl.__version__ == "0.1.0"
    assert set(nemo_rl.__all__) <= set(dir(nemo_rl))
    assert "SFTTrainer" in nemo_rl.__all__


def test_train_stays_a_function_after_its_module_is_imported() -> None:
    import_module("nemo_rl.api.train")
    assert callable(nemo_rl.train)
    assert run("import nemo_rl.api.train, nemo_rl; print(callable(nemo_rl.train))") == (
        "True"
    )
