"""Other networks of Figs. 4 and 5 on AudioSet: published mAP, parameters and, where printed, multiply-adds.

The figures are drawn without their numbers in our text of the paper; these are those of the works themselves, or of a
later table where a work does not print them. A network of the figures whose numbers we found nowhere in print (ERANN,
CMKD, EAT-M, PaSST-S-L) is left out. CED, which the paper cites as made in
parallel ([61]), is added. Multiply-adds are counted by each work in its own way.
"""

from __future__ import annotations

from typing import NamedTuple

PANNS = "Q. Kong et al., PANNs, IEEE/ACM TASLP 28, 2020, Tables XI and XII"
HTS_AT = "K. Chen et al., HTS-AT, ICASSP 2022, Table 1"
EAT = "W. Chen et al., EAT, IJCAI 2024 (arXiv 2401.03497), table of results on AS-2M"
CED = "H. Dinkel et al., CED, ICASSP 2024, github.com/RicherMans/CED"
CONVNEXT = "T. Pellegrini et al., Interspeech 2023, huggingface.co/topel/ConvNeXt-Tiny-AT"
PASST = "mAP: K. Koutini et al., Interspeech 2022; costs: a ninth of the ensemble's, footnote 1 of the paper"


class OtherNetwork(NamedTuple):
    """A network's point in Figs. 4 and 5: mAP in per cent, parameters and multiply-adds for 10 s in millions."""

    name: str
    map: float
    parameters: float
    macs: float | None
    is_transformer: bool
    source: str


OTHERS = (
    OtherNetwork("CNN14", 43.1, 80.754, 42_220, False, PANNS),
    OtherNetwork("ResNet38", 43.4, 73.783, 48_962, False, PANNS),
    OtherNetwork("Wavegram-Logmel", 43.9, 81.065, 53_510, False, PANNS),
    OtherNetwork("PSLA", 44.4, 13.6, None, False, HTS_AT),
    OtherNetwork("ConvNeXt", 47.1, 28.223, None, False, CONVNEXT),
    OtherNetwork("AST", 45.9, 87, None, True, HTS_AT),
    OtherNetwork("PaSST-S", 47.1, 775.3 / 9, 640_000 / 9, True, PASST),
    OtherNetwork("HTS-AT", 47.1, 31, None, True, HTS_AT),
    OtherNetwork("Audio-MAE", 47.3, 86, None, True, EAT),
    OtherNetwork("BEATs", 48.6, 90, None, True, EAT),
    OtherNetwork("CED-Tiny", 48.1, 5.5, None, True, CED),
    OtherNetwork("CED-Mini", 49.0, 9.6, None, True, CED),
    OtherNetwork("CED-Small", 49.6, 22, None, True, CED),
    OtherNetwork("CED-Base", 50.0, 86, None, True, CED),
)
