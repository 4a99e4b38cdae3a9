"""--to safetensors: the weights under this program's names, which are the published ones and timm's."""
import json

from util import safetensors_file
from util.files import atomic_file


def write(part, path):
    """Write the file, with the flags and class names that `util.trained` reads again.

    Returns:
        None, since no other library computes with it; code that loads it, {} for the path.
    """
    metadata = {'args': json.dumps(part.description())}
    if part.classes:
        metadata['classes'] = json.dumps(part.classes)
    with atomic_file(path) as file:
        safetensors_file.write(file, part.weights(), metadata)
    return None, 'safetensors.torch.load_file({})'
