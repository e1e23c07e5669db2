"""The engines for which SynergySched's authors published step models: GPU and model."""

from __future__ import annotations

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
H100, A100, A6000 = ("1xH100", LLAMA_8B), ("1xA100", LLAMA_8B), ("2xA6000", LLAMA_8B)
QWQ = ("1xH100", "Qwen/QwQ-32B")
