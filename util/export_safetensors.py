"""--to safetensors: the weights under this program's names, which are the published ones and timm's."""
import json

from util import safetensors_file
from util.errors import UserError
from util.exported_part import Part, named
from util.files import atomic_file

try:
    from safetensors.torch import load_file
except (ImportError, RuntimeError):         # not there; or there, and too new for this torch
    load_file = None


def write(part, path):
    """Write the file, read it back, and compare.

    Returns:
        lines that say what was compared.
    Raises:
        UserError: what is read is not what was written.
    """
    metadata = {'args': json.dumps(part.description())}
    if part.classes:
        metadata['classes'] = json.dumps(part.classes)
    weights = part.weights()
    with atomic_file(path) as file:
        safetensors_file.write(file, weights, metadata)
    again = Part(path)
    checks = [part.compare(named(part.output_names, again.run(*part.inputs.values())), 'this program, read back')]
    found = load_file(path) if load_file else again.weights()
    if set(found) != set(weights) or any(not found[name].equal(value) for name, value in weights.items()):
        raise UserError('{}: reads as other weights than were written'.format(path))
    return checks + ['{} tensors read by {}: all equal'.format(
        len(found), "safetensors.torch" if load_file else 'this program (the safetensors library is not at hand)')]


def loading(part, path):
    """Lines of Python that load it."""
    return ['from safetensors.torch import load_file', 'weights = load_file({!r})'.format(path)]
