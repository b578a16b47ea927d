"""The shape of a model: everything that decides weights and forward pass; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Attributes:
        theta: base of the frequencies.
        kind: ``default``, ``linear``, ``llama3`` or ``yarn``.
        factor: by how much positions (or low frequencies) are stretched.
        percent: share of a head's channels that is rotated.
        yarn: ``original_max_position_embeddings``, ``beta_fast``, ``beta_slow``,
            ``mscale`` and ``mscale_all_dim`` of ``yarn``.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    percent: float = 1.0
    yarn: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Moe:
    """Mixture of experts.

    Attributes:
        experts: routed experts of a layer.
        top_k: experts of a token.
        ffn: channels of a routed expert.
        layers: whether each layer has experts; the others are dense.
        normalise: weights of a token's experts sum to one (before ``scaling``).
        sigmoid: scores are sigmoids; softmax otherwise.
        bias: the choice of experts has a bias that the weights do not (DeepSeek-V3).
        groups: groups of experts, of which ``group_top_k`` serve a token; None for no
            groups.
        scaling: factor of the routed experts' sum.
        shared_ffn: channels of the shared experts together, 0 without them.
        shared_gate: a sigmoid weighs the shared experts (Qwen2-MoE).
    """

    experts: int
    top_k: int
    ffn: int
    layers: tuple[bool, ...]
    normalise: bool
    sigmoid: bool = False
    bias: bool = False
    groups: int | None = None
    group_top_k: int | None = None
    scaling: float = 1.0
    shared_ffn: int = 0
    shared_gate: bool = False


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434).

    Attributes:
        q_rank: rank of the queries' compression, None without it.
        kv_rank: rank of the keys' and values' compression.
        nope_dim: channels of a head without rotation.
        rope_dim: channels of a head with rotation, shared by all heads' keys.
        v_dim: channels of a head's values.
    """

    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int


@dataclass(frozen=True)
class ModelSpec:
    """Everything that the Megatron model and the weight rules need to know.

    Attributes:
        architecture: Hugging Face's name of the model class; its family's rules apply.
        head_dim: channels of one attention head.
        num_kv_heads: key-value heads (GQA groups).
        tied: the output layer is the embedding.
        qkv_bias: query, key and value projections have a bias.
        qk_norm: queries and keys are normalised per head.
        activation: ``silu`` or ``gelu`` (tanh approximation), of gated layers.
        window: positions that a sliding layer sees, its own included.
        sliding: whether each layer slides; empty where none does.
        local_rope: rotation of the sliding layers, None for ``rope``.
        attention_scale: factor of query times key, None for ``head_dim ** -0.5``.
        attention_softcap: bound c of the scores, c tanh(x / c); None without one.
        final_softcap: as that, of the logits.
        sandwich_norms: a norm also after attention and after the MLP.
        offset_norms: norms multiply with one plus their weight.
        scaled_embedding: embeddings are multiplied with ``sqrt(hidden_size)``.
        moe: experts, None for a dense model.
        mla: latent attention, None for attention with heads' own keys.
        scored: a reward model: one score per sequence in place of the output layer.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope: Rope
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    activation: str = "silu"
    window: int | None = None
    sliding: tuple[bool, ...] = field(default=())
    local_rope: Rope | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    sandwich_norms: bool = False
    offset_norms: bool = False
    scaled_embedding: bool = False
    moe: Moe | None = None
    mla: Mla | None = None
    scored: bool = False

    def with_score(self) -> ModelSpec:
        """The same model with a score in place of its output layer."""
        return replace(self, scored=True, tied=False)

    def padded_vocab(self, divisor: int) -> int:
        """Smallest vocabulary size >= ``vocab_size`` that ``divisor`` divides."""
        return -(-self.vocab_size // divisor) * divisor

    def has_experts(self, layer: int) -> bool:
        """Whether a layer is a mixture of experts."""
        return self.moe is not None and self.moe.layers[layer]

    @property
    def mixed(self) -> bool:
        """Layers differ in their weights: some are dense, some have experts."""
        return self.moe is not None and len(set(self.moe.layers)) > 1

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes by the names that rules give the dimensions of a tensor."""
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        found = {
            "1": 1,
            "vocab": self.vocab_size,
            "hidden": self.hidden_size,
            "ffn": self.ffn_hidden_size,
            "gate_up": 2 * self.ffn_hidden_size,
            "head": self.head_dim,
            "query": query,
            "key": key,
            "qkv": query + 2 * key,
        }
        if self.moe is not None:
            found |= {
                "experts": self.moe.experts,
                "expert_ffn": self.moe.ffn,
                "shared_ffn": self.moe.shared_ffn,
            }
        if self.mla is not None:
            found |= {
                "q_rank": self.mla.q_rank or 0,
                "kv_rank": self.mla.kv_rank,
                "latent": self.mla.kv_rank + self.mla.rope_dim,
                "mla_query": self.num_heads * (self.mla.nope_dim + self.mla.rope_dim),
                "mla_key_value": self.num_heads * (self.mla.nope_dim + self.mla.v_dim),
                "mla_value": self.num_heads * self.mla.v_dim,
            }
        return found

    def shape(self, dims: str) -> tuple[int, ...]:
        """Shape of a tensor from the names of its dimensions, ``"ffn hidden"``."""
        return tuple(self.sizes[name] for name in dims.split())
