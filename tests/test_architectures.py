"""Table I and the variants as numbers: without PyTorch, and as the networks really are."""

import subprocess
import sys

import pytest

from dymn.architectures import ATTENTIONS, CONTEXTS, MODELS, SEQUENCES, Variant, model_config
from dymn.models.mobilenet import MobileNet
from dymn.weights.shapes import state_shapes

VARIANTS = {
    **{name: model_config(name) for name in MODELS},
    **{f"attention_{name}": Variant(width=0.3, attention=name).config() for name in ATTENTIONS},
    **{
        f"static_{name}": Variant(width=0.3, dynamic_blocks="none", attention=name, attention_blocks="all").config()
        for name in ATTENTIONS
    },
    **{
        f"context_{name}": Variant(width=0.3, context=name, dynamic_relus=("expand", "project")).config()
        for name in CONTEXTS
    },
    **{
        f"head_{name}": Variant(width=0.3, head=name, n_kernels=2, n_maps=3).config()
        for name in ("mlp", "fully_convolutional")
    },
    **{f"fmn_{kind}": model_config("fmn04", width=0.3, sequence=kind, sequence_size=48) for kind in SEQUENCES},
    "fmn_tf_without_input": model_config("fmn04", width=0.1, sequence="tf", sequence_size=96),
    "own_without_attention": Variant(width=0.3, context="own", attention=None).config(),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_shapes_are_those_of_the_network(config):
    expected = {name: tuple(tensor.shape) for name, tensor in MobileNet.skeleton(config).state_dict().items()}
    assert state_shapes(config) == expected


def test_no_pytorch_for_numbers():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from dymn.models import paper\nfrom dymn.profiling import compare, count\n"
        "assert count('dymn04').parameters == 1961239 and len(compare('all')) > 50"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
