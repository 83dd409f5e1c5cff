"""Vision towers; CLIP, SigLIP, DINOv2 and the like come from transformers through AutoModel."""
