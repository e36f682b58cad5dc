"""mtplug-hf-peft: methods of Hugging Face peft."""
