"""The host's own nodes, of which ours use two."""

SAVED = []  # (kind, filename, shape, prompt) of each image


class SaveImage:
    kind = "output"

    def save_images(self, images, filename_prefix="ComfyUI", prompt=None, extra_pnginfo=None):
        names = [f"{filename_prefix}_{len(SAVED) + i:05}_.png" for i in range(len(images))]
        for name, image in zip(names, images, strict=True):
            SAVED.append((self.kind, name, tuple(image.shape), prompt))
        saved = [{"filename": name, "subfolder": "", "type": self.kind} for name in names]
        return {"ui": {"images": saved}}


class PreviewImage(SaveImage):
    kind = "temp"
