"""mtplug-llama: Llama (Touvron et al. 2023), Mistral, Qwen2 and Qwen3 as runs of mtplug that translate."""
