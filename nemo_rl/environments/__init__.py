"""Reward environments: from a plain function to a full environment."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "EnvironmentInterface": "nemo_rl.environments.interfaces",
        "EnvironmentReturn": "nemo_rl.environments.interfaces",
        "CodeEnvironment": "nemo_rl.environments.code_environment",
        "FunctionalRewardWrapper": "nemo_rl.environments.functional_reward",
        "GymEnvironment": "nemo_rl.environments.gym_environment",
        "LLMJudgeEnvironment": "nemo_rl.environments.llm_judge",
        "MathEnvironment": "nemo_rl.environments.math_environment",
        "MultiRewardEnvironment": "nemo_rl.environments.multi_reward",
        "ReasoningGymEnvironment": "nemo_rl.environments.reasoning_gym_environment",
        "RewardModelEnvironment": "nemo_rl.environments.reward_model",
        "SlidingPuzzleEnvironment": "nemo_rl.environments.sliding_puzzle",
        "TaskEnvironments": "nemo_rl.environments.task_environments",
        "make_environment": "nemo_rl.environments.factory",
    },
)
