"""Published weights by URL: only with a hash in the name, downloaded once, checked each time."""
import hashlib
import http.server
import os
import socket
import threading
from collections import Counter

import pytest
import torch
from conftest import finetune, launcher

from util import checkpoint_file, download
from util.errors import UserError


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.split('?')[0].rsplit('/', 1)[-1]
        self.server.asked[name] += 1
        if name in self.server.files:
            self.send_response(200)
            self.send_header('Content-Length', str(len(self.server.files[name])))
            self.end_headers()
            self.wfile.write(self.server.files[name])
        else:
            self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of `files` {name: content} at `url`, which counts what was `asked` for; TORCH_HOME is a new folder."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    for name in ('http_proxy', 'HTTP_PROXY', 'https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    served = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
    served.files, served.asked = {}, Counter()
    served.url = 'http://127.0.0.1:{}/'.format(served.server_port)
    thread = threading.Thread(target=served.serve_forever, args=(.01,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture
def published(server, tmp_path):
    """URL of a checkpoint with the beginning of its hash in its name."""
    checkpoint_file.save(str(tmp_path / 'x.pth'), {'model': {'w': torch.ones(2)}, 'epoch': 3})
    content = (tmp_path / 'x.pth').read_bytes()
    (tmp_path / 'x.pth').unlink()
    name = 'mae-{}.pth'.format(hashlib.sha256(content).hexdigest()[:8])
    server.files[name] = content
    return server.url + name


def kept(tmp_path):
    """What was downloaded, and where."""
    return [os.path.join(folder, name) for folder, _, names in os.walk(str(tmp_path)) for name in names
            if not name.endswith('.lock')]


def test_a_url_with_a_hash_is_loaded_and_downloaded_once(server, published, tmp_path):
    for url in (published, published, published + '?download=true'):
        assert checkpoint_file.load(url)['epoch'] == 3
    assert sum(server.asked.values()) == 1
    assert [os.path.basename(path) for path in kept(tmp_path)] == [published.rsplit('/', 1)[-1]]
    assert os.path.dirname(kept(tmp_path)[0]).endswith('checkpoints')


def test_a_kept_file_that_was_damaged_is_downloaded_again(server, published, tmp_path):
    checkpoint_file.load(published)
    with open(kept(tmp_path)[0], 'r+b') as file:
        file.write(b'damage')
    assert checkpoint_file.load(published)['epoch'] == 3 and sum(server.asked.values()) == 2


def test_content_of_another_hash_is_refused_and_leaves_nothing_behind(server, published, tmp_path):
    server.files[published.rsplit('/', 1)[-1]] += b'x'
    with pytest.raises(UserError, match=r'mae-[0-9a-f]{8}\.pth: cannot be downloaded \(invalid hash value'):
        checkpoint_file.load(published)
    assert not kept(tmp_path)


def test_a_server_that_falls_silent_is_one_line_and_later_sockets_wait_as_before(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(download, 'SILENCE', .2)
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen(1)
        with pytest.raises(UserError, match='timed out'):
            checkpoint_file.load('http://127.0.0.1:{}/a-00000000.pth'.format(silent.getsockname()[1]))
    assert socket.getdefaulttimeout() is None and not kept(tmp_path)


def test_processes_that_need_the_same_file_download_it_once(server, published, tmp_path):
    threads = [threading.Thread(target=download.fetch, args=(published,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(server.asked.values()) == 1 and len(kept(tmp_path)) == 1


def test_a_missing_file_and_a_missing_server_are_one_line(server, tmp_path):
    for url, words in ((server.url + 'a-00000000.pth', 'HTTP Error 404'),
                       ('http://127.0.0.1:1/a-00000000.pth', 'refused'), ('http://no.invalid/a-00000000.pth', ''),
                       ('http://127.0.0.1:x/a-00000000.pth', ''), ('http://[/a-00000000.pth', '')):
        with pytest.raises(UserError) as caught:
            checkpoint_file.load(url)
        assert str(caught.value).startswith(url + ': cannot be downloaded (') and words in str(caught.value)
        assert '\n' not in str(caught.value)
    assert not any(map(os.path.getsize, kept(tmp_path)))


REFUSED = ['http://host/x.pth', 'http://x-12345678.pth', 'https://host/x-1234567.pth', 'https://host/x-1234567g.pth',
           'https://host/-', 'https://host', 'http://host/x-12345678.pth/', 'http://host/x-12345678.pth.zip',
           'http:///x-12345678.pth', 'file:///tmp/x-12345678.pth', 'ftp://host/x-12345678.pth',
           'https://host/x y-12345678.pth', 'https://host/x\n-12345678.pth', 'https://host/?x-12345678.pth',
           'https://host/..%2f-/..', 'FILE://x-12345678.pth']


@pytest.mark.parametrize('url', REFUSED)
def test_a_url_without_a_hash_or_of_another_kind_is_refused(url):
    assert download.is_url(url) and 'download it' in download.fault_of(url)
    with pytest.raises(UserError, match='download it'):
        checkpoint_file.load(url)


def test_a_path_is_no_url():
    assert not any(map(download.is_url, ['/a/b', 'a', 'auto', '', '-x', './http:/x', 'C:\\x', 'http:x', '://']))


def test_flags_name_urls_without_a_hash_at_once(images):
    for flags in (['--finetune', 'https://host/x.pth'], ['--resume=file:///x-12345678.pth']):
        run = finetune('--data_path', images, *flags)
        assert run.status == 2 and run.output.startswith('error: argument ' + flags[0].split('=')[0])
        assert 'download it' in run.output and run.output.count('\n') == 1


def test_the_launchers_pass_urls_on(images):
    url = 'https://host/x-12345678.pth'
    run = launcher('finetune_performance_1p', '--data_path', images, '--finetune_pth', url, DRY_RUN='1')
    assert run.status == 0 and '--finetune {}'.format(url) in run.output
    run = launcher('finetune_performance_1p', '--data_path', images, '--finetune_pth', 'ftp://host/x-12345678.pth')
    assert run.status == 2 and 'is not a file' in run.output


def test_fine_tuning_starts_from_a_url(images, pretrained, server, tmp_path):
    content = (pretrained / 'checkpoint-0.pth').read_bytes()
    name = 'mae-{}.pth'.format(hashlib.sha256(content).hexdigest())
    server.files[name] = content
    url = server.url + name
    run = finetune('--data_path', images, '--output_dir', tmp_path / 'o', '--epochs', 1, '--finetune', url)
    assert run.status == 0 and 'loaded {}; left out: the decoder'.format(url) in run.output, run.output
