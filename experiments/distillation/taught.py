"""The student with its teacher: the same run as `alone.py` with the distillation loss beside the next-token loss.

smoljax train experiments/distillation/taught.py --workdir runs/distillation/seed0/taught \\
    --set model.start=runs/distillation/seed0/dense/model --set seed=0 [--set objectives.distill.teacher=MODEL]

Weight and temperature are the customary 1 and 2 (Hinton et al. 2015), fixed before any run.
"""

from dataclasses import replace

from experiments.distillation.alone import config as alone
from smoljax.training.config import Distill

config = replace(
    alone,
    name="student-taught",
    objectives=(*alone.objectives, Distill("smolvlm-nano", weight=1.0, temperature=2.0)),
)
