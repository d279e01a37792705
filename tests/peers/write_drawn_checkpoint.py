#!/usr/bin/env python3
"""Writes a checkpoint of Qwen2.5-7B's shape with fewer layers and drawn weights, to time its loading:

    write_drawn_checkpoint.py DIR [--layers 3] [--shards 2]
    tessera bench load --device cuda --model DIR

Standard library alone. A layer has 0.47 GB, the embedding (tied) 1.09 GB.
"""
import argparse
import json
import os
import pathlib
import random
import struct

from bench_end_to_end import QWEN_7B

BLOCK = 64 << 20


def tensors_of(config):
    hidden, mlp, head = (config[name] for name in ("hidden_size", "intermediate_size", "head_dim"))
    q, k = (head * config[name] for name in ("num_attention_heads", "num_key_value_heads"))
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, width in (("q", q), ("k", k), ("v", k)):
            yield f"{prefix}self_attn.{name}_proj.weight", (width, hidden)
            yield f"{prefix}self_attn.{name}_proj.bias", (width,)
        yield prefix + "self_attn.o_proj.weight", (hidden, q)
        for name in ("gate", "up"):
            yield f"{prefix}mlp.{name}_proj.weight", (mlp, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, mlp)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", (hidden,)


def size_of(shape):
    size = 2
    for extent in shape:
        size *= extent
    return size


def write_shard(path, tensors, values):
    header, end = {}, 0
    for name, shape in tensors:
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size_of(shape)]}
        end += size_of(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for at in range(0, end, BLOCK):
            file.write(values[:min(BLOCK, end - at)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--shards", type=int, default=2)
    given = parser.parse_args()
    given.dir.mkdir(parents=True, exist_ok=True)
    config = dict(QWEN_7B, num_hidden_layers=given.layers, tie_word_embeddings=True)
    (given.dir / "config.json").write_text(json.dumps(config))
    # High bytes are those of small positive numbers; a block that repeats is as slow to copy as one that does not.
    values = bytearray(random.Random(1).randbytes(BLOCK))
    values[1::2] = b"\x3c" * (BLOCK // 2)
    tensors = list(tensors_of(config))
    names = [f"model-{i + 1:05}-of-{given.shards:05}.safetensors" for i in range(given.shards)]
    parts = [tensors[i::given.shards] for i in range(given.shards)]
    for name, part in zip(names, parts):
        write_shard(given.dir / name, part, memoryview(values))
    weight_map = {tensor: name for name, part in zip(names, parts) for tensor, _ in part}
    (given.dir / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    size = sum(size_of(shape) for _, shape in tensors)
    print(f"{given.dir}: {given.layers} layers, {size / 1e9:.2f} GB in {given.shards} files, {os.cpu_count()} cores here")


if __name__ == "__main__":
    main()
