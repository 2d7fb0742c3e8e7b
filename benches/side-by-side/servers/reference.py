"""What sentence-transformers alone gives for each text, one at a time, one thread asking.

python reference.py MODEL_DIR TEXTS.json FILE.npz
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer


def main() -> None:
    folder, texts, file = sys.argv[1:]
    work = json.loads(Path(texts).read_text())
    model = SentenceTransformer(folder, device="cpu")
    vectors = np.stack([model.encode(text) for text in work])
    np.savez(file, texts=np.array(work), embeddings=vectors)


if __name__ == "__main__":
    main()
