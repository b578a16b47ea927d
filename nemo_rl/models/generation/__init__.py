"""Generation as the driver sees it; the engines on the ranks are in backends."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "GenerationConfig": "nemo_rl.config.generation",
        "GenerationDatumSpec": "nemo_rl.data.interfaces",
        "GenerationInterface": "nemo_rl.models.generation.interfaces",
        "GenerationOutputSpec": "nemo_rl.data.interfaces",
        "GenerationStream": "nemo_rl.models.generation.interfaces",
        "HuggingFaceGeneration": "nemo_rl.models.generation.hf",
        "VllmConfig": "nemo_rl.models.generation.vllm_config",
        "VllmGeneration": "nemo_rl.models.generation.vllm",
        "VllmGenerationWorker": "nemo_rl.models.generation.vllm_worker",
    },
)
