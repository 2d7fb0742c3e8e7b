"""What was loaded as a model that is served: those of sentence-transformers as encoders, another
callable as a predictor. Called on the worker.
"""

from __future__ import annotations

from typing import Any

from onelane._modules import imported
from onelane._serve.encoder import Encoder
from onelane._serve.predictor import Predictor

# Of these the first position is not 0, so that they take fewer tokens than they have positions.
_SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet")


def model_of(model: Any, device: str) -> Encoder | Predictor:
    """Return a model as it is served, on the device; `TypeError` names what is."""
    if isinstance(model, (Encoder, Predictor)):
        return model
    library = imported("sentence_transformers")
    if library is not None:
        if isinstance(model, library.CrossEncoder):
            return _cross_encoder(model, device)
        if isinstance(model, library.SentenceTransformer):
            return _sentence_transformer(model, device)
    if callable(model):
        return Predictor(model)
    raise TypeError(
        f"a {type(model).__name__} is no model that serve() knows: give a SentenceTransformer, a "
        f"CrossEncoder, an onelane.Encoder, an onelane.Predictor or another callable, a function "
        f"that makes one, or its directory"
    )


def _sentence_transformer(model: Any, device: str) -> Encoder:
    model = _placed(model, device)
    first, *rest = list(model)
    if type(first).__name__ != "Transformer":
        raise TypeError(
            f"the SentenceTransformer begins with a {type(first).__name__} and not with a "
            f"Transformer: say by an onelane.Encoder how its texts become numbers"
        )
    prompts = dict(model.prompts or {})
    whole = all(getattr(module, "include_prompt", True) for module in rest)
    if not whole and any(prompts.values()):
        raise TypeError(
            "the SentenceTransformer leaves its prompt out of the pooling (include_prompt=False), "
            "which serve() cannot: say by an onelane.Encoder how its texts become numbers"
        )
    pooling = next((module for module in rest if hasattr(module, "pooling_mode")), None)
    width = getattr(model, "get_embedding_dimension", None)
    width = width() if width else model.get_sentence_embedding_dimension()
    cut = getattr(model, "truncate_dim", None)
    names = _inputs(model.tokenizer)

    def run(ids: Any, mask: Any, types: Any) -> Any:
        import torch

        with torch.inference_mode():
            given = (("input_ids", ids), ("attention_mask", mask), ("token_type_ids", types))
            features = {
                name: torch.from_numpy(array).to(device) for name, array in given if name in names
            }
            return model(features)["sentence_embedding"][..., :cut]

    default = model.default_prompt_name
    return Encoder(
        run,
        model.tokenizer,
        _limit(model, first.auto_model.config),
        dimensions=cut or width,
        pad_id=model.tokenizer.pad_token_id or 0,
        prompts=prompts,
        default_prompt=prompts.get(default) if default else None,
        lower_case=bool(getattr(first, "do_lower_case", False)),
        pooling=None if pooling is None else str(pooling.pooling_mode),
        dtype=_dtype(model),
    )


def _cross_encoder(model: Any, device: str) -> Encoder:
    model = _placed(model, device)
    scoring = model.model
    if not type(scoring).__name__.endswith("ForSequenceClassification"):
        raise TypeError(
            f"the CrossEncoder has a {type(scoring).__name__}, and serve() knows those for "
            f"sequence classification: say by an onelane.Encoder how its texts become scores"
        )
    names = _inputs(model.tokenizer)

    def run(ids: Any, mask: Any, types: Any) -> Any:
        import torch

        with torch.inference_mode():
            given = (("input_ids", ids), ("attention_mask", mask), ("token_type_ids", types))
            features = {
                name: torch.from_numpy(array).to(device) for name, array in given if name in names
            }
            return scoring(**features).logits

    labels = [scoring.config.id2label[at] for at in range(scoring.config.num_labels)]
    return Encoder(
        run,
        model.tokenizer,
        _limit(model, scoring.config),
        task="rerank" if len(labels) == 1 else "classify",
        labels=labels,
        pad_id=model.tokenizer.pad_token_id or 0,
        dtype=_dtype(model),
    )


def _placed(model: Any, device: str) -> Any:
    return model.to(device).eval()


def _inputs(tokenizer: Any) -> set[str]:
    return {"input_ids", "attention_mask", *tokenizer.model_input_names}


def _limit(model: Any, config: Any) -> int:
    """Return the most tokens that a text may have."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in _SHIFTED:
        positions -= (config.pad_token_id or 0) + 1
    said = (model.max_seq_length, model.tokenizer.model_max_length, positions)
    return min(int(limit) for limit in said if limit is not None and limit > 0)


def _dtype(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


__all__ = ["model_of"]
