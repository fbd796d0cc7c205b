"""Words and tokens: tokenizer, chat template, and automata that read or constrain answers. Knows no network."""
