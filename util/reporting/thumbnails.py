"""Small pictures: side by side in one with titles above them, and as text for a page that is one file."""
import base64
import io

from PIL import Image, ImageDraw, ImageFont

from util.compat import supported
from util.data.image_files import UnreadableImage
from util.data.transforms import to_pil
from util.text import one_line

NEAREST, LANCZOS = 0, 1         # by Pillow's numbers: release 9.1 warns of the names
LETTERS, LINE, LETTER = 13, 17, 7       # pixels: height of letters, where this Pillow lets one choose; of a line; width


def scaled(image, side):
    """A PIL image with the longer side `side` pixels long; one that grows keeps its pixels square."""
    factor = side / max(image.size)
    size = [max(1, round(length * factor)) for length in image.size]
    return image.resize(size, NEAREST if factor > 1 else LANCZOS)


def grid(rows, titles=(), gap=4, width=0):
    """Rows of PIL images, all of one size, as one.

    Args:
        titles: for each row, lists of lines above its images; rows beyond them have none.
        width: pixels that a column has at least.
    """
    across, height = max(rows[0][0].size[0], width), rows[0][0].size[1]
    heights = [LINE * max(map(len, row)) for row in titles] + [0] * (len(rows) - len(titles))
    canvas = Image.new('RGB', (max(map(len, rows)) * (across + gap) - gap,
                               sum(heights) + len(rows) * (height + gap) - gap), 'white')
    top = 0
    for row, (images, above) in enumerate(zip(rows, heights)):
        top += above
        for column, image in enumerate(images):
            left = column * (across + gap)
            canvas.paste(image, (left, top))
            for line, text in enumerate(reversed(titles[row][column]) if above else (), 1):
                _write(canvas, left, top - line * LINE, text, across)
        top += height + gap
    return canvas


def _write(canvas, left, top, text, width):
    """Write a line of text on a PIL image, in so many pixels; of a longer one the end. The font has Latin letters."""
    most, text = width // LETTER, one_line(text).encode('latin-1', 'replace').decode('latin-1')
    font = ImageFont.load_default(**supported(ImageFont.load_default, size=LETTERS))
    ImageDraw.Draw(canvas).text((left, top), text if len(text) <= most else '...' + text[3 - most:], 'black', font)


def readable(dataset, indices):
    """Yield (index, image) of those whose image can be read."""
    for index in indices:
        try:
            yield index, dataset[int(index)][0]
        except UnreadableImage:
            continue


def jpeg(image):
    """A PIL image as the base64 text of a JPEG file."""
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=85)
    return base64.b64encode(file.getvalue()).decode('ascii')


def to_images(imgs, normalize, side):
    """Images (N, C, H, W) that `normalize`, Normalize, has made -> PIL images of that longer side."""
    return [scaled(to_pil(pixels), side) for pixels in normalize.to_display(imgs)]
