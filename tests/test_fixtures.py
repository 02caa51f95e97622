import json
from pathlib import Path
import numpy as np, pytest, torch
from dymn import LogMel, FrontEndConfig
from dymn.weights import import_efficientat
S = Path(__file__).parents[2] / "shared"
@pytest.mark.parametrize("d", sorted(p.parent.name for p in S.glob("fixtures/*/state_dict.pt")))
def test_net(d):
    p = S / "fixtures" / d
    c = json.loads((p / "config.json").read_text())
    m = import_efficientat(p / "state_dict.pt", temperature=c["attention_temperature"], strides=c.get("strides", (2,2,2,2)))
    z = np.load(p / "io.npz")
    with torch.no_grad(): o = m(torch.from_numpy(z["log_mel"]))
    a = abs(o.logits.numpy() - z["logits"]).max(); b = abs(o.embedding.numpy() - z["embedding"]).max()
    print(d, a, b)
    assert a < 1e-5 and b < 1e-5
@pytest.mark.parametrize("d", sorted(S.glob("fixtures/mel/*.npz")))
def test_mel(d):
    z = np.load(d); c = json.loads(str(z["config"]))
    f = LogMel(FrontEndConfig(n_mels=c["n_mels"], win_length=c["win_length"], hop_length=c["hopsize"]))
    y = f(torch.from_numpy(z["waveform"])[None])[0, 0].numpy()
    e = abs(y - z["log_mel"]).max(); print(y.shape, e); assert e < 1e-4
