"""vLLM as an engine in a process of its own; imported there, and nowhere before."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"VLLMBackend": "nemo_rl.backends.generation.vllm.backend"}
)
