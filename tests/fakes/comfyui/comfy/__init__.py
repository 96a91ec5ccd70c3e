"""ComfyUI's engine, as far as lib_hires/comfy touches it."""
