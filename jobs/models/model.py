"""The mini models: the Qwen2 form in PyTorch, for training, and its export as a Hugging Face directory."""
import dataclasses
import json
import math
import os
import shutil

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

HEAD_DIM = 64
ENTRIES = 4096
ROPE_THETA = 1e6
EPS = 1e-6
MAX_POSITIONS = 32768
SHARD_BYTES = 15_000_000


@dataclasses.dataclass(frozen=True)
class Shape:
    width: int     # E
    layers: int    # L
    heads: int     # H
    kv_heads: int  # K
    mlp: int       # F


SHAPES = {"mini-s": Shape(128, 4, 2, 1, 256), "mini-m": Shape(256, 4, 4, 2, 704), "mini-l": Shape(384, 6, 6, 2, 1024)}


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, EPS)


def rotate(x, cosines, sines):  # half-split, x (B, S, heads, D)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.input_layernorm, self.post_attention_layernorm = Norm(shape.width), Norm(shape.width)
        self.q_proj = nn.Linear(shape.width, shape.heads * HEAD_DIM)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * HEAD_DIM)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * HEAD_DIM)
        self.o_proj = nn.Linear(shape.heads * HEAD_DIM, shape.width, bias=False)
        self.gate_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.width, bias=False)

    def forward(self, x, cosines, sines):
        batch, length, _ = x.shape
        normed = self.input_layernorm(x)
        q, k, v = (proj(normed).view(batch, length, -1, HEAD_DIM) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cosines, sines), rotate(k, cosines, sines)
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                                                  is_causal=True, enable_gqa=True)
        x = x + self.o_proj(attended.transpose(1, 2).reshape(batch, length, -1))
        normed = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(ENTRIES, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * shape.layers) if residual else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens):  # (B, S) -> (B, S, E) before the head
        angles = (torch.arange(tokens.shape[1], device=tokens.device).float()[:, None]
                  * ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2, device=tokens.device).float() / HEAD_DIM))
        cosines, sines = angles.cos()[None, :, None], angles.sin()[None, :, None]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cosines, sines)
        return self.norm(x)

    def answers(self, tokens, places):
        """Loss and rightness (B, A) of the tokens behind `places` (B, A), and which of them count (−1 does not)."""
        counts = places >= 0
        at = places.clamp(min=0)
        hidden = self(tokens).gather(1, at[..., None].expand(-1, -1, self.norm.weight.shape[0]))
        targets = tokens.gather(1, at + 1)
        logits = F.linear(hidden, self.embed_tokens.weight).float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        return losses * counts, (logits.argmax(-1) == targets) & counts, counts


def hugging_face_name(name):
    if not name.startswith("layers."):
        return f"model.{name}"
    _, number, rest = name.split(".", 2)
    part = rest.split(".")[0]
    room = ("self_attn." if part in ("q_proj", "k_proj", "v_proj", "o_proj") else
            "mlp." if part.endswith("_proj") else "")
    return f"model.layers.{number}.{room}{rest}"


def exported_weights(folder):
    """The state of a Model from a directory that `export` wrote; rounded to bf16 as it lies there."""
    names, stored = {}, {}
    for file in sorted(os.listdir(folder)):
        if file.endswith(".safetensors"):
            stored.update(load_file(os.path.join(folder, file)))
    for name in stored:
        parts = name.removeprefix("model.").split(".")
        names[".".join(part for part in parts if part not in ("self_attn", "mlp"))] = stored[name].float()
    return names


def export(weights, shape, tokenizer_path, folder):
    """A directory that transformers and tessera load. weights: the state of a Model."""
    os.makedirs(folder, exist_ok=True)
    with open(tokenizer_path, encoding="utf-8") as file:
        special = {token["content"]: token["id"] for token in json.load(file)["added_tokens"]}
    ends = [special["<|im_end|>"], special["<|endoftext|>"]]
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0, "hidden_act": "silu",
        "hidden_size": shape.width, "head_dim": HEAD_DIM, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "intermediate_size": shape.mlp, "num_hidden_layers": shape.layers,
        "initializer_range": 0.02, "max_position_embeddings": MAX_POSITIONS, "use_sliding_window": False,
        "rms_norm_eps": EPS, "rope_theta": ROPE_THETA, "tie_word_embeddings": True, "use_cache": True,
        "vocab_size": ENTRIES, "torch_dtype": "bfloat16", "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": ends[0]}
    generation = {"bos_token_id": special["<|endoftext|>"], "eos_token_id": ends, "pad_token_id": ends[1],
                  "do_sample": False}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
    target = os.path.join(folder, "tokenizer.json")
    if not os.path.exists(target) or not os.path.samefile(tokenizer_path, target):
        shutil.copyfile(tokenizer_path, target)

    shards, size = [{}], 0
    for name, tensor in weights.items():
        stored = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        if size + stored.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][hugging_face_name(name)] = stored
        size += stored.nbytes
    names = ["model.safetensors"] if len(shards) == 1 else [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for old in os.listdir(folder):
        if old.endswith(".safetensors") or old == "model.safetensors.index.json":
            os.remove(os.path.join(folder, old))
    for name, shard in zip(names, shards):
        save_file(shard, os.path.join(folder, name), metadata={"format": "pt"})
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total},
                 "weight_map": {key: name for name, shard in zip(names, shards) for key in shard}}
        with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
            json.dump(index, file, indent=2)
            file.write("\n")
