"""An option of ours that is misspelt: what fairseq's parser and our callback say of it."""

import re
import subprocess
import sys

import fairseq_tiny as tiny
import pytest

import headdynamics as hd


def test_fairseq_train_suggests_our_options_and_leaves_others_alone(tmp_path):
    """Its own refusal, with the nearest of ours at the end; what the user's own code adds is taken."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/__init__.py").write_text(
        "from fairseq.tasks import register_task\nfrom fairseq.tasks.translation import TranslationTask\n"
        "@register_task('mine')\nclass Mine(TranslationTask):\n"
        "    @classmethod\n    def add_args(cls, parser):\n"
        "        parser.add_argument('data')\n        parser.add_argument('--hd-scor')\n"
    )
    own = ["--hd-user-dir", str(tmp_path / "own"), "--task", "mine", "--hd-scor", "3"]
    words = ["no-data", "--user-dir", tiny.USER_DIR, "--arch", "transformer", *own, "--hd-exmples=1", "--lrr", "1"]
    train = [sys.executable, "-m", "fairseq_cli.train", *words]
    done = subprocess.run(train, capture_output=True, text=True, timeout=100, env=tiny.ENVIRONMENT)
    refusal = "error: unrecognized arguments: --hd-exmples=1 --lrr 1 (did you mean '--hd-examples'?)\n"
    assert done.returncode == 2 and done.stderr.endswith(refusal), done.stderr[-500:]


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"evry": 500}, TypeError, "unknown option 'evry' (did you mean 'every'?); there are "),
        ({"budgte": 0.1}, TypeError, "unknown option 'budgte' (did you mean 'budget'?)"),
        ({"estimator": "exmaple"}, ValueError, "unknown estimator 'exmaple' (did you mean 'example'?)"),
        ({"ablations": ["all-but-on"]}, ValueError, "unknown ablation 'all-but-on' (did you mean 'all-but-one'?)"),
        ({"online": "bacth"}, ValueError, "unknown estimator 'bacth' (did you mean 'batch'?)"),
    ],
)
def test_the_callback_and_the_observer_say_which_option_was_meant(options, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        hd.HeadDynamicsCallback("run.h5", **options)
    if "online" not in options and "evry" not in options:
        with pytest.raises(error, match=re.escape(sentence)):
            hd.Observer(None, batches=[], **options)
    with pytest.raises(TypeError, match=r"unknown option 'scor' \(did you mean 'score'\?\)"):
        hd.Observer(None, batches=[], scor=None)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: hd.ablate(None, "accuracy"), "a score is one such as hd.accuracy(batches), or a function of the"),
        (lambda: hd.find_knee(None, [0], hd.perplexity), "such as hd.accuracy(batches), or a function of the model"),
        (lambda: hd.Observer(None, batches=[], score="bleu"), "not 'bleu'"),
        (lambda: hd.pruning_curve(None, [0], hd.accuracy), "not 'accuracy'"),
        (lambda: hd.Observer(None, batches=[], orders="signed,fisher"), "a list: write ['signed', 'fisher']"),
    ],
)
def test_the_wrong_kind_of_thing(call, sentence):
    """Before any model is looked at."""
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call()


def test_a_misspelt_name_of_ours_is_found_by_python_itself():
    code = "import headdynamics as hd, sys; assert 'torch' not in sys.modules and 'ablate' in dir(hd); hd.accuray"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "has no attribute 'accuray'" in done.stderr
    assert sys.version_info < (3, 11) or "Did you mean: 'accuracy'?" in done.stderr
