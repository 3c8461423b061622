"""What students are fine-tuned on: task files → examples → features of a tokenizer → the score of predictions."""
