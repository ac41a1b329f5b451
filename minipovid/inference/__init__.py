"""Who answers: llama.cpp, transformers or a server; the chat and the server on top of them."""
