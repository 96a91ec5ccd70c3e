"""ComfyUI's side: the only place that imports `comfy` and `comfy_api`."""
