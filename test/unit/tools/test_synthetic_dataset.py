"""The synthetic dataset."""
import synthetic_dataset
from conftest import call


def test_images_depend_on_the_seed_alone(images, tmp_path):
    synthetic_dataset.write(str(tmp_path / 'again'), train=8, val=0, seed=0)
    synthetic_dataset.write(str(tmp_path / 'other'), train=8, val=0, seed=1)
    for path in (tmp_path / 'again' / 'train').glob('*/*.jpg'):
        name = path.relative_to(tmp_path / 'again')
        assert path.read_bytes() == (images / name).read_bytes() != (tmp_path / 'other' / name).read_bytes()


def test_a_non_empty_folder_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    run = call('synthetic_dataset', tmp_path, '--train', 8)
    assert (run.status, run.output.count('\n')) == (2, 1) and str(tmp_path) in run.output
    assert [path.name for path in tmp_path.iterdir()] == ['file']
