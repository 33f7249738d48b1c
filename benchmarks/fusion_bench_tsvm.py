"""TSVM of a folder of models by fusion_bench's own classes: run by the Python of its environment, see tools.py.

Embeddings and head are averaged, as triune does, so that both decompose the same matrices.
"""

from __future__ import annotations

import sys


def main(base: str, *experts: str, out: str) -> None:
    from fusion_bench.method import TaskSingularVectorMerging  # type: ignore[import-not-found]
    from fusion_bench.modelpool import CausalLMPool  # type: ignore[import-not-found]

    models = {"_pretrained_": base, **{f"expert_{i}": path for i, path in enumerate(experts)}}
    pool = CausalLMPool(models, tokenizer=None, model_kwargs={"torch_dtype": "bfloat16"})
    averaged = ["model.embed_tokens.weight", "lm_head.weight"]
    TaskSingularVectorMerging(exclude_keys=averaged).run(pool).save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:-1], out=sys.argv[-1])
