"""A policy behind the OpenAI API's chat completions. Nothing imports it but jaxvlmrl/serve.py."""
