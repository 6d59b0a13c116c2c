"""The table of stages: everything that recipe, loop and planner know of one by its name.

A new stage is a subclass of Stage and a row here.
"""

from trainers.rl.options import JudgeOptions, RlOptions
from trainers.rl.stage import RlStage
from trainers.sft.deeplatent import DeepLatentStageOptions, Distil, Interleaved
from trainers.sft.latent import LatentStage
from trainers.sft.lvr import LvrStage, LvrStageOptions
from trainers.sft.monet import AlignLatents, AlignObservations, MonetStageOptions, WarmUp
from trainers.sft.text import TextStage
from trainers.sft.valr import ValrStage, ValrStageOptions
from trainers.sft.vision import VisionStage
from trainers.stage import StageSpec

_STUDENT = "caps.total", "caps.each"
_ALIGNED = (
    *("monet.observation_factor", "monet.observation_tags", "monet.align_weight", "monet.align_axis"),
    *("monet.align_levels", "monet.aux_readers", "monet.aux_self", "monet.latent_pass_mask"),
)
_MONET = {"monet": MonetStageOptions}
_DEEPLATENT = {"deeplatent": DeepLatentStageOptions}

STAGES: dict[str, StageSpec] = {
    "vision": StageSpec(stage=VisionStage, latents=False),
    "text": StageSpec(stage=TextStage, latents=False),
    "latent": StageSpec(stage=LatentStage, unrolled=True),
    "monet1": StageSpec(
        stage=WarmUp, options=_MONET, reads=("monet.observation_factor", "monet.observation_tags", *_STUDENT)
    ),
    "monet2": StageSpec(
        stage=AlignObservations,
        options=_MONET,
        reads=(*_ALIGNED, "monet.latent_only", "monet.surrogate_weight", "monet.aux_image", "caps"),
        unrolled=True,
        teacher=True,
    ),
    "monet3": StageSpec(
        stage=AlignLatents,
        options=_MONET,
        reads=(*_ALIGNED, "monet.target_mask", "caps"),
        unrolled=True,
        teacher=True,
    ),
    "lvr": StageSpec(stage=LvrStage, options={"lvr": LvrStageOptions}, method="lvr"),
    "valr": StageSpec(stage=ValrStage, options={"valr": ValrStageOptions}, unrolled=True),
    "deeplatent1": StageSpec(
        stage=Interleaved, options=_DEEPLATENT, reads=("deeplatent.words", *_STUDENT), method="deeplatent"
    ),
    "deeplatent2": StageSpec(
        stage=Distil,
        options=_DEEPLATENT,
        reads=("deeplatent", "caps"),
        method="deeplatent",
        unrolled=True,
        teacher=True,
    ),
    "rl": StageSpec(
        stage=RlStage,
        options={"rl": RlOptions, "judge": JudgeOptions},
        reads=("rl", "judge", *_STUDENT),
        latents=False,
        questions=True,
        reinforces=True,
    ),
}
