"""TrainingArguments that this loop has no use for: a field that does nothing is refused, not accepted in silence."""

ROWS = (
    "rows, their order and their number are laid out for the whole run before it starts, so that resuming repeats none"
)
HUB = "checkpoints stay in the run's folder; upload the finished one with `hf upload USER/NAME runs/NAME/final`"
BEST = "the last weights are the run's; stop_at ends it at an accuracy"
EVALUATION = "validation logs the mean loss and the stage's own metrics; per_device_eval_batch_size bounds its memory"
OWN_MODEL = "it changes transformers' models from within, and a stage is a module of its own around one"
LOSS = "every stage has its own loss; its weights are fields of the recipe"
RESUME = "a run goes on by itself from its newest whole checkpoint; pass --restart to begin anew"
ACCELERATE = "start several processes with `accelerate launch --config_file trainers/accelerate/….yaml` instead"
COMPILE = "a stage runs forwards of ever new shapes, which would be compiled again at every step"
EPOCHS = "a run is one pass over rows drawn for max_steps steps"
HALVES = "losses would have to be scaled, which this loop does not; take dtype=bfloat16 or bf16=true"

UNUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "num_train_epochs": ((), f"{EPOCHS}; set max_steps"),
    "train_sampling_strategy": (("sequential",), ROWS),
    "length_column_name": ((), ROWS),
    "ignore_data_skip": ((False,), ROWS),
    "dataloader_drop_last": ((True,), ROWS),
    "dataloader_in_order": ((True,), ROWS),
    "remove_unused_columns": ((False,), ROWS),
    "auto_find_batch_size": ((False,), f"{ROWS}; see what fits with --dry-run"),
    "accelerator_config": ((None,), ROWS),
    "load_best_model_at_end": ((False,), BEST),
    "metric_for_best_model": ((None,), BEST),
    "greater_is_better": ((None,), BEST),
    "save_only_model": ((False,), "a checkpoint without the optimiser's state cannot be gone on from"),
    "resume_from_checkpoint": ((None,), RESUME),
    "restore_callback_states_from_checkpoint": ((False,), RESUME),
    "logging_nan_inf_filter": ((False,), "it logs a loss that is nan as 0; here a run ends where one comes"),
    "label_smoothing_factor": ((0,), LOSS),
    "label_names": ((None,), LOSS),
    "average_tokens_across_devices": ((), LOSS),
    "neftune_noise_alpha": ((None,), OWN_MODEL),
    "use_liger_kernel": ((False,), OWN_MODEL),
    "liger_kernel_config": ((None,), OWN_MODEL),
    "use_cache": ((False,), OWN_MODEL),
    "include_num_input_tokens_seen": ((False, "no"), OWN_MODEL),
    "torch_compile": ((False,), COMPILE),
    "torch_compile_backend": ((None,), COMPILE),
    "torch_compile_mode": ((None,), COMPILE),
    "fp16": ((False,), HALVES),
    "fp16_full_eval": ((False,), EVALUATION),
    "bf16_full_eval": ((False,), EVALUATION),
    "prediction_loss_only": ((False,), EVALUATION),
    "eval_do_concat_batches": ((True,), EVALUATION),
    "eval_use_gather_object": ((False,), EVALUATION),
    "eval_accumulation_steps": ((None,), EVALUATION),
    "include_for_metrics": (([],), EVALUATION),
    "batch_eval_metrics": ((False,), EVALUATION),
    "do_train": ((False,), "`trainers run` trains"),
    "do_eval": ((False,), "eval_strategy says when a run validates"),
    "do_predict": ((False,), "measure a checkpoint with `trainers study`"),
    "push_to_hub": ((False,), HUB),
    "hub_model_id": ((None,), HUB),
    "hub_token": ((None,), HUB),
    "hub_private_repo": ((None,), HUB),
    "hub_strategy": ((), HUB),
    "hub_always_push": ((False,), HUB),
    "hub_revision": ((None,), HUB),
    "parallelism_config": ((None,), ACCELERATE),
    "local_rank": ((-1,), ACCELERATE),
}
"""Field → values that say what happens anyway, and why others are refused."""
STRATEGIES = {
    "save_strategy": ({"best": BEST, "epoch": EPOCHS}, "save_steps"),
    "eval_strategy": ({"epoch": EPOCHS}, "eval_steps"),
    "logging_strategy": ({"epoch": EPOCHS}, "logging_steps"),
}
"""Field → values that are refused, and what to set instead."""


def refuse_unused(values: dict[str, object]) -> None:
    """Raises ValueError, with the reason, for the first field that a recipe sets to no effect or to a bad one."""
    for name, value in values.items():
        shown = "…" if name == "hub_token" else str(value)[:40]
        harmless, reason = UNUSED.get(name, ((value,), ""))
        if value not in harmless:
            raise ValueError(f"{name}={shown} has no use here: {reason}. Leave {name} out.")
        refused, instead = STRATEGIES.get(name, ({}, ""))
        if isinstance(value, str) and value in refused:
            raise ValueError(f"{name}={shown} has no use here: {refused[value]}. Set {name}=steps and {instead}.")
