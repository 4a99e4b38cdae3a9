"""Published weights by URL: only with a hash in the name, downloaded and checked once."""
import functools
import hashlib
import http.server
import socket
import threading

import pytest
import torch

from util.checkpoints import download, pth_file
from util.config import parser
from util.config.train_flags import parse_finetune
from util.errors import UserError


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        self.server.asked.append(self.path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the `folder` at `url` and lists what was `asked` for; TORCH_HOME is a new folder."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('no_proxy', '*')
    folder = tmp_path / 'served'
    folder.mkdir()
    served = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(_Handler, directory=str(folder)))
    served.folder, served.asked, served.url = folder, [], 'http://127.0.0.1:{}/'.format(served.server_port)
    thread = threading.Thread(target=served.serve_forever, args=(.01,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture
def published(server):
    """URL of a checkpoint with the beginning of its hash in its name."""
    path = server.folder / 'x.pth'
    pth_file.save(str(path), {'model': {'w': torch.ones(2)}, 'epoch': 3})
    name = 'mae-{}.pth'.format(hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    path.rename(server.folder / name)
    return server.url + name


def downloaded(tmp_path):
    """Downloaded files."""
    return [path for path in tmp_path.glob('home/**/checkpoints/*') if path.suffix != '.lock']


@pytest.mark.compat
def test_a_url_with_a_hash_is_loaded_and_downloaded_once(server, published, tmp_path):
    for url in (published, published, published + '?download=true'):
        assert pth_file.load(url)['epoch'] == 3
    assert len(server.asked) == 1 and [path.name for path in downloaded(tmp_path)] == [published.rsplit('/', 1)[-1]]


def test_content_of_another_hash_is_rejected_and_leaves_nothing_behind(server, published, tmp_path):
    with open(str(server.folder / published.rsplit('/', 1)[-1]), 'ab') as file:
        file.write(b'x')
    with pytest.raises(UserError, match=r'mae-[0-9a-f]{8}\.pth: cannot be downloaded \(invalid hash value'):
        pth_file.load(published)
    assert not downloaded(tmp_path)


def test_processes_that_need_the_same_file_download_it_once(server, published, tmp_path):
    threads = [threading.Thread(target=download.fetch, args=(published,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1 and len(downloaded(tmp_path)) == 1


@pytest.mark.parametrize('url, words', [
    ('{}a-00000000.pth', 'HTTP Error 404'), ('http://127.0.0.1:1/a-00000000.pth', 'refused'), ('{silent}', 'timed out'),
    ('http://no.invalid/a-00000000.pth', ''), ('http://[/a-00000000.pth', '')])
def test_a_server_without_the_file_is_one_line(server, monkeypatch, url, words):
    monkeypatch.setattr(download, 'SILENCE', .2)
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen(1)
        url = url.format(server.url, silent='http://127.0.0.1:{}/a-00000000.pth'.format(silent.getsockname()[1]))
        with pytest.raises(UserError) as caught:
            download.fetch(url)
    line = str(caught.value)
    assert line.startswith(url + ': cannot be downloaded (') and words in line and '\n' not in line
    assert socket.getdefaulttimeout() is None           # later sockets wait as before


@pytest.mark.parametrize('url', [
    'http://host/x.pth', 'https://host/x-1234567g.pth', 'http:///x-12345678.pth', 'file:///tmp/x-12345678.pth',
    'https://host/x\n-12345678.pth', 'https://host/..%2f-/..'])
def test_flags_reject_urls_without_a_hash_or_of_another_scheme(tmp_path, capsys, url):
    for flag in ('--finetune', '--resume'):
        with pytest.raises(SystemExit) as ended:
            parse_finetune(['--data_path', str(tmp_path), flag, url])
        line = capsys.readouterr().err
        assert ended.value.code == 2 and line.count('\n') == 1
        assert 'argument {}: '.format(flag) in line and 'download it' in line
    assert not any(map(parser.is_url, ['/a/b', 'a', 'auto', '', '-x', './http:/x', 'C:\\x', 'http:x', '://']))
