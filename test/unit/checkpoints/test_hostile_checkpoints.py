"""Malicious checkpoints, which run code, exhaust memory or lie about their size; and damage of every kind."""
import argparse
import collections
import io
import os
import pickle
import random
import struct
import zipfile

import pytest
import torch
from test_end_to_end import same

from util.checkpoints import pth_file
from util.checkpoints.pth_format import MAGIC_NUMBER, PROTOCOL
from util.errors import SystemFailure, UserError

pytestmark = pytest.mark.compat

MACHINE = {'protocol_version': PROTOCOL, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}


def zipped(path, pickled, records=(), method=zipfile.ZIP_STORED):
    """A zip checkpoint of this pickle and these further (name, content)."""
    with zipfile.ZipFile(str(path), 'w', method) as archive:
        for name, content in [('data.pkl', pickled), ('version', b'3\n'), *records]:
            archive.writestr('archive/' + name, content)
    return str(path)


def legacy(path, pickled, keys=(), data=b''):
    """A checkpoint in the format before zip archives."""
    path.write_bytes(b''.join(pickle.dumps(part, 2) for part in (MAGIC_NUMBER, PROTOCOL, MACHINE)) + pickled
                     + pickle.dumps(list(keys), 2) + data)
    return str(path)


def rejected(path, load=pth_file.load):
    """Check that `load` fails with one line that names the file; returns it."""
    with pytest.raises(UserError) as caught:
        load(str(path))
    message = str(caught.value)
    assert message.startswith('{}: '.format(path)) and '\n' not in message and len(message) < 600
    return message


class Call:
    """Calls a function when unpickled by the ordinary pickle."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def system(marker):
    return Call(os.system, 'touch "{}"'.format(marker))


def within(value):
    """`value` as a further entry, deep in a state that is otherwise fine."""
    return pickle.dumps({'model': {}, 'x': [{'x': (value,)}]}, 2)


RUNNING = {
    'os.system': lambda marker: within(system(marker)),
    'within a reduce': lambda marker: within(Call(collections.OrderedDict, [('x', system(marker))])),
    'protocol 4': lambda marker: pickle.dumps({'model': {}, 'x': system(marker)}, 4),
    'inst': lambda marker: b'(S\'touch "%s"\'\nios\nsystem\n.' % str(marker).encode(),
    'hub': lambda marker: within(Call(torch.hub.load_state_dict_from_url, 'file://' + str(marker))),
    'a slot': lambda marker: b'\x80\x02cargparse\nNamespace\n)\x81N}X\x09\x00\x00\x00__class__cos\nsystem\ns\x86b.',
}


@pytest.mark.parametrize('container', [zipped, legacy])
@pytest.mark.parametrize('kind', RUNNING)
def test_a_checkpoint_that_would_run_code_is_rejected_and_runs_nothing(tmp_path, monkeypatch, container, kind):
    monkeypatch.chdir(tmp_path)
    rejected(container(tmp_path / 'evil.pth', RUNNING[kind](tmp_path / 'ran')))
    assert os.listdir(str(tmp_path)) == ['evil.pth']


@pytest.mark.parametrize('code', [b'\x80\x02cargparse\nNamespace\n}X\x06\x00\x00\x00__eq__cargparse\nNamespace\nsb.',
                                  b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x06\x00\x00\x00__defaults__K\x05s\x86b.',
                                  b'\x80\x02ctorch\nFloatStorage\nN}X\x04\x00\x00\x00sizeK\x05s\x86b.',
                                  b'\x80\x02ctorch\nSize\n)R}X\x01\x00\x00\x00xK\x05sb.'])
def test_a_checkpoint_cannot_change_a_class_or_function(tmp_path, code):
    things = argparse.Namespace, torch._utils._rebuild_tensor_v2, torch.FloatStorage
    before = [dict(vars(thing)) for thing in things]
    rejected(zipped(tmp_path / 'evil.pth', code))
    assert before == [dict(vars(thing)) for thing in things]


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04', b'<html>', b'storages\0'.ljust(1024, b'\0')])
def test_other_files_are_rejected(tmp_path, content):
    """The last one begins as a tar archive, which torch.load would unpack."""
    (tmp_path / 'x.pth').write_bytes(content)
    rejected(tmp_path / 'x.pth')


LAUGHS = b'\x80\x02]q\x00' + b''.join(b'](h%ch%ceq%c' % (i, i, i + 1) for i in range(60)) + b'.'
EXHAUSTING = {
    'a tuple too deep to hash, as a key': b'\x80\x02})' + b'\x85' * 500000 + b'Ns.',
    'lists within lists': b'\x80\x02' + b']' * 10000 + b'a' * 9999 + b'.',
    'a list that holds itself': b'\x80\x02]q\x00h\x00a.', 'each list holds the one before twice': LAUGHS,
    'the last place of the memo': b'\x80\x02]r\xff\xff\xff\xff.',
    'a string of 4 GB that is not there': b'\x80\x02X\xff\xff\xff\xff' + b'x' * 100 + b'.',
    'attributes of a function': b'\x80\x02ctorch\nSize\nN}(X\x0c\x00\x00\x00__defaults__K\x05u\x86b.'}


@pytest.mark.parametrize('kind', EXHAUSTING)
def test_a_pickle_made_to_exhaust_memory_or_time_is_rejected(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(pth_file, 'MOST_VALUES', 10 ** 4)
    rejected(zipped(tmp_path / 'evil.pth', EXHAUSTING[kind]))


def test_a_file_of_the_other_byte_order_is_rejected(tmp_path, monkeypatch):
    records = [('data/0', DATA), ('byteorder', b'big')]
    assert 'byte order' in rejected(zipped(tmp_path / 'zip.pth', tensors({}), records))
    monkeypatch.setitem(MACHINE, 'little_endian', False)
    assert 'byte order' in rejected(legacy(tmp_path / 'old.pth', tensors({}), ['0'], struct.pack('<Q', 2) + DATA))


class Storage:
    """What torch's pickles refer to."""

    def __init__(self, *saved_id):
        self.saved_id = saved_id


class StoragePickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.saved_id if isinstance(value, Storage) else None


def tensors(*options):
    """A pickle of a model with a tensor for each dict of options, torch's own kind where one has none."""
    def tensor(size=(2,), stride=(1,), offset=0, numel=2, key='0', kind=None, hooks=None, location='cpu', more=(),
               word='storage', attributes=()):
        storage = Storage(word, kind or torch.FloatStorage, key, location, numel, *more)
        made = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False,
                    collections.OrderedDict() if hooks is None else hooks)
        made.call += attributes
        return made
    file = io.BytesIO()
    StoragePickler(file, 2).dump({'model': {str(i): tensor(**given) for i, given in enumerate(options)}})
    return file.getvalue()


DATA = struct.pack('<2f', 3., 4.)


def test_a_tensor_that_fits_is_loaded_from_either_format(tmp_path):
    for path in (zipped(tmp_path / 'zip.pth', tensors({}), [('data/0', DATA)]),
                 legacy(tmp_path / 'legacy.pth', tensors({'more': [None]}), ['0'], struct.pack('<q', 2) + DATA)):
        assert pth_file.load(path)['model']['0'].tolist() == [3., 4.]


SAME = Storage('storage', torch.FloatStorage, '0', 'cpu', 2)
# By what is wrong: the options of a tensor, or of several.
LYING = {
    'two sizes of the same data': [{'size': (1,)}, {'size': (1,), 'kind': torch.LongStorage, 'numel': 1}],
    'one element too many': {'size': (3,), 'numel': 3}, 'beyond its storage': {'offset': 1},
    'before its storage': {'offset': -1}, 'a step back': {'stride': (-1,), 'offset': 1},
    'larger than its data by steps of 0': {'size': (10 ** 12,), 'stride': (0,)},
    'more dimensions than torch supports': {'size': (1,) * 100, 'stride': (1,) * 100}, 'no numbers': {'size': ('2',)},
    'another key': {'key': '1'}, 'no type': {'kind': 'FloatStorage'},
    'a type of larger elements': {'kind': torch.DoubleStorage},
    'another shape afterwards': {'attributes': ((SAME, 1, (1,), (1,)),)},
}


@pytest.mark.parametrize('kind', LYING)
def test_a_tensor_that_does_not_fit_its_data_is_rejected(tmp_path, kind):
    options = LYING[kind] if isinstance(LYING[kind], list) else [LYING[kind]]
    rejected(zipped(tmp_path / 'zip.pth', tensors(*options), [('data/0', DATA)]))
    older = tensors(*({'more': [None], **given} for given in options))
    rejected(legacy(tmp_path / 'legacy.pth', older, ['0'], struct.pack('<q', 2) + DATA))


@pytest.mark.parametrize('keys, data', [
    (['0'], struct.pack('<q', 2) + DATA[:-1]), (['0'], struct.pack('<q', 2) + DATA + b'x'),
    (['0'], struct.pack('<q', 3) + DATA), (['1'], b''), ([['0']], struct.pack('<q', 2) + DATA)])
def test_data_that_does_not_fit_the_pickle_is_rejected_in_the_legacy_format(tmp_path, keys, data):
    rejected(legacy(tmp_path / 'legacy.pth', tensors({'more': [None]}), keys, data))


def changed(at, value):
    return lambda content: content[:at] + value + content[at + len(value):]


def test_torchscript_is_rejected(tmp_path):
    torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)).save(str(tmp_path / 'traced.pth'))
    rejected(tmp_path / 'traced.pth')


def test_records_that_share_their_bytes_are_rejected(tmp_path):
    """They would fill more memory than the file has bytes."""
    path, inner = tmp_path / 'zip.pth', io.BytesIO()
    with zipfile.ZipFile(inner, 'w') as archive:
        archive.writestr('archive/data/1', bytes(4000))
        record = archive.getinfo('archive/data/1')
    outer = inner.getvalue()[:30 + len(record.filename) + 4000]
    zipped(path, tensors({'numel': len(outer) // 4}, {'key': '1', 'numel': 1000}), [('data/0', outer)])
    with zipfile.ZipFile(str(path), 'a') as archive:
        record.header_offset = archive.getinfo('archive/data/0').header_offset + 30 + len(record.filename)
        archive.filelist.append(record)
        archive.comment = b''           # so that the directory is written again
    rejected(path)


def test_compressed_records_are_rejected_without_being_decompressed(tmp_path):
    pickled = tensors({'size': (10 ** 8 // 4,), 'numel': 10 ** 8 // 4})
    rejected(zipped(tmp_path / 'zip.pth', pickled, [('data/0', bytes(10 ** 8))], zipfile.ZIP_DEFLATED))


def test_a_file_larger_than_the_memory_is_rejected_before_it_is_read(tmp_path):
    path = zipped(tmp_path / 'sparse.pth', tensors({}))
    os.truncate(path, 2 ** 43)
    rejected(path)


@pytest.mark.parametrize('state', [
    {'model': {1: torch.zeros(1)}}, {'model': {'w': 1.}}, {'model': 5}, {}, 7, torch.zeros(2),
    {'model': {}, 'x': {1, 2}}, {'model': {}, 'x': {(1, 2): 3}}, {'model': {}, 'x': torch.float32},
    {'model': {}, 'x': torch.zeros(2).to_sparse()}, {'model': {}, 'x': torch.nn.Linear(1, 1)}])
def test_only_tensors_and_plain_values_are_loaded(tmp_path, state):
    torch.save(state, str(tmp_path / 'odd.pth'), _use_new_zipfile_serialization=True)
    rejected(tmp_path / 'odd.pth')


def test_containers_lose_attributes_set_by_a_file(tmp_path):
    state, flags = Call(collections.OrderedDict, [['w', torch.ones(2)]]), argparse.Namespace()
    state.call += ({'items': 5, 'keys': 6, '_metadata': 7},)
    vars(flags).update({'__class__': 1, '__dict__': 2, 'self': 3, '_get_kwargs': 4})
    torch.save({'model': state, 'args': flags}, str(tmp_path / 'odd.pth'))
    loaded = pth_file.load(str(tmp_path / 'odd.pth'))
    assert type(loaded['model']) is dict and loaded['model']['w'].tolist() == [1., 1.]
    assert type(loaded['args']) is dict and loaded['args'] == vars(flags)


def test_values_that_cannot_be_loaded_are_not_saved(tmp_path):
    with pytest.raises(TypeError):
        pth_file.save(str(tmp_path / 'c.pth'), {'model': {}, 'x': {1, 2}})
    assert not os.listdir(str(tmp_path))


def test_a_folder_a_pipe_and_a_device_are_rejected_at_once(tmp_path):
    os.mkfifo(str(tmp_path / 'pipe'))
    os.symlink('loop', str(tmp_path / 'loop'))
    for path in (tmp_path / 'pipe', '/dev/zero', tmp_path / 'loop', tmp_path / 'none', tmp_path):
        rejected(path)


@pytest.mark.parametrize('error, kind', [
    (PermissionError(13, 'Permission denied'), UserError), (OSError(5, 'Input/output error'), SystemFailure),
    (MemoryError(), SystemFailure), (RuntimeError("DefaultCPUAllocator: can't allocate memory"), SystemFailure),
    (RuntimeError('NPU out of memory. Tried to allocate 2 GiB\nmore'), SystemFailure), (IndexError('3'), UserError)])
def test_an_error_while_loading_is_one_line_with_file_and_error_type(error, kind):
    with pytest.raises(kind) as caught, pth_file.checkpoint_errors('x.pth'):
        raise error
    message = str(caught.value)
    assert message.startswith('x.pth: ') and type(error).__name__ in message and '\n' not in message


def test_a_flipped_bit_is_detected_or_harmless(tmp_path):
    path = tmp_path / 'c.pth'
    pth_file.save(str(path), {
        'model': {'w': torch.randn(30, 10), 'b': torch.randn(10).double(), 'none': torch.zeros(0)}, 'epoch': 3,
        'args': {'model': 'x', 'lr': .1}, 'optimizer': {'state': {0: {'step': 2, 'm': torch.randn(10)}}}})
    content, rng, harmless = path.read_bytes(), random.Random(0), 0
    right = pth_file.load(str(path))
    head, tail = range(200), range(len(content) - 150, len(content))
    for position in sorted({*head, *tail, *rng.sample(range(len(content)), 200)}):
        path.write_bytes(changed(position, bytes([content[position] ^ 1 << rng.randrange(8)]))(content))
        try:
            loaded = pth_file.load(str(path))
        except UserError as error:
            assert str(error).startswith('{}: '.format(path)) and '\n' not in str(error)
        else:
            harmless += 1
            assert same(loaded, right), position
    assert harmless < 400       # padding between records, dates and such


@pytest.mark.parametrize('new_format', [True, False])
def test_a_checkpoint_truncated_anywhere_is_rejected(tmp_path, new_format):
    path = tmp_path / 'c.pth'
    torch.save({'model': {'w': torch.randn(30)}, 'epoch': 3}, str(path), _use_new_zipfile_serialization=new_format)
    content = path.read_bytes()
    assert pth_file.load(str(path))['epoch'] == 3
    for length in {*range(0, 120), *range(120, len(content), 11), *range(len(content) - 120, len(content))}:
        path.write_bytes(content[:length])
        rejected(path)
