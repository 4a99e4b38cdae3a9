"""Thumbnails: resized images, image grids with titles, and base64 JPEGs for the report."""
import base64
import io
from typing import Any, Iterable, Iterator, List, Sequence, Tuple

import torch
from PIL import Image, ImageDraw, ImageFont

from util.compat import supported
from util.data.image_files import UnreadableImage
from util.data.transforms import Normalize, to_pil

NEAREST, LANCZOS = 0, 1                 # by Pillow's numbers: release 9.1 warns of the names
FONT_SIZE, LINE, GAP = 13, 17, 4        # pixels: font size, if this Pillow has a choice; line height; between images


def grid(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], width: int) -> Image.Image:
    """Grid of images of one size on white, GAP pixels apart, in columns of at least `width` pixels with `titles`."""
    column_width, height = max(rows[0][0].size[0], width) + GAP, rows[0][0].size[1] + GAP
    canvas = Image.new('RGB', (len(rows[0]) * column_width - GAP, LINE + len(rows) * height - GAP), 'white')
    font = ImageFont.load_default(**supported(ImageFont.load_default, size=FONT_SIZE))
    for column, title in enumerate(titles):
        ImageDraw.Draw(canvas).text((column * column_width, 0), title, 'black', font)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            canvas.paste(image, (column * column_width, LINE + row * height))
    return canvas


def readable_images(dataset: Any, indices: Iterable[int]) -> Iterator[Tuple[int, torch.Tensor]]:
    """Yield (index, image) of the readable images."""
    for index in indices:
        try:
            yield index, dataset[int(index)][0]
        except UnreadableImage:
            continue


def jpeg_base64(image: Image.Image) -> str:
    """Encode as JPEG, in base64."""
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=85)
    return base64.b64encode(file.getvalue()).decode('ascii')


def to_images(imgs: torch.Tensor, normalize: Normalize, side: int) -> List[Image.Image]:
    """(N, C, H, W), normalised -> PIL images, `side` pixels on the longer side; enlarged pixels stay square."""
    factor = side / max(imgs.shape[2:])
    height, width = (max(1, round(length * factor)) for length in imgs.shape[2:])
    return [to_pil(pixels).resize((width, height), NEAREST if factor > 1 else LANCZOS)
            for pixels in normalize.to_display(imgs)]
