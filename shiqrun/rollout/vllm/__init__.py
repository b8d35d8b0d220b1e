"""With `rollout=vllm`, a vLLM server samples over HTTP; the training process sends it prompts and new weights."""
