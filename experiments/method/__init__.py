"""The method, from sub-networks to the fine-tuned network."""
