"""Language models come from transformers; here is what the package needs to know of them."""
