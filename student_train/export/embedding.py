"""What makes a Hugging Face folder one of sentence-transformers, too: its encoder, then the mean over tokens.

Their names and keys are those of sentence-transformers' own folders since version 2 (Reimers & Gurevych 2019, arXiv
1908.10084, found the mean best of the poolings).
"""

import json
from pathlib import Path

from student_train.saved_model import SavedModel

POOLING = "1_Pooling"


def write_embedding(saved: SavedModel, folder: Path) -> None:
    """Adds them to a folder with a saved model; the head of that is not used."""
    width = saved.model.config.hidden_size
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": POOLING, "type": "sentence_transformers.models.Pooling"},
        ],
        "sentence_bert_config.json": {"max_seq_length": saved.max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        f"{POOLING}/config.json": {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True},
    }
    (folder / POOLING).mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
