"""Networks: parameters in, arrays out. They know nothing of environments, words or algorithms."""
