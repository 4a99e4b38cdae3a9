"""Small pictures as text, for a page that is one file."""
import base64
import io
import re

from PIL import Image

QUALITY = 85            # of the JPEG files
NEAREST, LANCZOS = 0, 1         # by Pillow's numbers: release 9.1 warns of the names
_BASE64 = re.compile(r'[A-Za-z0-9+/]+={0,2}\Z')


def scaled(image, side):
    """A PIL image with the longer side `side` pixels long; one that grows keeps its pixels square."""
    factor = side / max(image.size)
    size = [max(1, round(length * factor)) for length in image.size]
    return image.resize(size, NEAREST if factor > 1 else LANCZOS)


def grid(rows, gap=4):
    """Rows of PIL images, all of one size, as one."""
    width, height = (length + gap for length in rows[0][0].size)
    whole = Image.new('RGB', (len(rows[0]) * width - gap, len(rows) * height - gap), 'white')
    for down, images in enumerate(rows):
        for across, image in enumerate(images):
            whole.paste(image, (across * width, down * height))
    return whole


def jpeg(image):
    """A PIL image as the base64 text of a JPEG file."""
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=QUALITY)
    return base64.b64encode(file.getvalue()).decode('ascii')


def is_base64(text):
    """Whether a value, such as a checkpoint holds, can be what `jpeg` gave."""
    return isinstance(text, str) and bool(_BASE64.match(text))
