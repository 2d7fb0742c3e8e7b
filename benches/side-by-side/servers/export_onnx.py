"""Write a sentence-embedding model as ONNX: BERT, mean of the tokens, length 1.

python export_onnx.py MODEL_DIR FILE
"""

from __future__ import annotations

import os
import sys

import torch
from transformers import AutoModel


class Sentence(torch.nn.Module):
    def __init__(self, folder: str) -> None:
        super().__init__()
        # The fused attentions' masks depend on the input in ways that the export cannot follow.
        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def main() -> None:
    folder, file = sys.argv[1:]
    ids = torch.tensor([[101, 2003, 102], [101, 102, 0]])
    axes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        Sentence(folder),
        (ids, (ids > 0).long()),
        file + ".part",
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence_embedding"],
        dynamo=True,
        external_data=False,
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
    )
    os.replace(file + ".part", file)


if __name__ == "__main__":
    main()
