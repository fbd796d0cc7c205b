"""Vision-language models that learn to act, trained with their worlds as one compiled program."""
