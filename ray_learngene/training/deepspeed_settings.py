"""The names in a DeepSpeed JSON: DeepSpeed itself ignores a section that it does not know.

tests/training/test_deepspeed_settings.py compares these lists with the installed DeepSpeed.
"""

from __future__ import annotations

from typing import Any

from ray_learngene.errors import UserError, did_you_mean

_SECTIONS = """
    activation_checkpointing aio autotuning checkpoint comet comms_logger communication_data_type compile
    compression_training csv_monitor data_efficiency data_types dataloader_drop_last datastates_ckpt disable_allgather
    disable_python_gc dump_state expert_parallel flops_profiler gradient_allreduce_op gradient_predivide_factor
    hybrid_engine log_level memory_breakdown nebula pipeline prescale_gradients seq_parallel_communication_data_type
    sequence_parallel_size steps_per_print tensor_parallel tensorboard timers use_data_before_expert_parallelism
    vocabulary_size wall_clock_breakdown wandb weight_quantization zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer zero_optimization
"""
_ZERO = """
    allgather_bucket_size allgather_partitions allgather_sequential compute_grad_norm contiguous_gradients cpu_offload
    cpu_offload_param cpu_offload_use_pin_memory elastic_checkpoint enable_sanity_checks
    gather_16bit_weights_on_model_save ignore_unused_parameters leaf_module legacy_stage1 load_from_fp32_weights
    log_trace_cache_warnings max_live_parameters max_reuse_distance memory_efficient_linear model_persistence_threshold
    module_granularity_threshold offload_optimizer offload_param overlap_comm override_module_apply
    param_persistence_threshold parameter_alignment pipeline_loading_checkpoint prefetch_bucket_size reduce_bucket_size
    reduce_scatter round_robin_gradients save_muon_momentum_buffer_in_memory stage stage3_allgather_sequential
    stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save stage3_max_live_parameters
    stage3_max_reuse_distance stage3_model_persistence_threshold stage3_module_granularity_threshold
    stage3_param_persistence_threshold stage3_prefetch_bucket_size stage3_use_all_reduce_for_fetch_params sub_group_size
    use_all_reduce_for_fetch_params use_multi_rank_bucket_allreduce zenflow zero_hpz_partition_size
    zero_quantized_gradients zero_quantized_nontrainable_weights zero_quantized_weights
"""
_OFFLOAD_OPTIMIZER = """
    buffer_count cpuadam_cores_perc device fast_init nvme_path pin_memory pipeline_read pipeline_write ratio
    super_offload
"""
_OFFLOAD_PARAM = "buffer_count buffer_size device max_in_cpu nvme_path pin_memory"
SECTIONS, ZERO = frozenset(_SECTIONS.split()), frozenset(_ZERO.split())
OFFLOAD = {
    "offload_optimizer": frozenset(_OFFLOAD_OPTIMIZER.split()),
    "offload_param": frozenset(_OFFLOAD_PARAM.split()),
}
# sections of whose names DeepSpeed ignores those that it does not know
FLAT = {
    section: frozenset(names.split())
    for section, names in {
        "activation_checkpointing": "contiguous_memory_optimization cpu_checkpointing number_checkpoints "
        "partition_activations profile synchronize_checkpoint_boundary",
        "aio": "block_size intra_op_parallelism overlap_events queue_depth single_submit use_gds",
        "checkpoint": "load_universal parallel_write tag_validation use_node_local_storage",
        "data_types": "grad_accum_dtype",
        "flops_profiler": "detailed enabled module_depth output_file profile_step recompute_fwd_factor top_modules",
        "timers": "throughput",
    }.items()
}
# sections that DeepSpeed itself checks, but only where training has begun
CHECKED = {
    section: frozenset(names.split())
    for section, names in {
        "comms_logger": "debug enabled prof_all prof_ops verbose",
        "csv_monitor": "enabled job_name output_path",
        "tensorboard": "enabled job_name output_path",
        "wandb": "enabled group project team",
    }.items()
}


def check_names(values: dict[str, Any], where: str) -> None:
    """Refuse names that DeepSpeed does not know, on the top level, in the settings of ZeRO and in flat sections.

    Raises:
        UserError: names the first one, and the known one that is nearest.
    """
    _check(values, SECTIONS, where)
    zero = values.get("zero_optimization", {})
    _check(zero, ZERO, f"{where}: zero_optimization")
    for name, known in OFFLOAD.items():
        _check_section(zero, name, known, f"{where}: zero_optimization")
    for name, known in {**FLAT, **CHECKED}.items():
        _check_section(values, name, known, where)


def _check_section(values: dict[str, Any], name: str, known: frozenset[str], where: str) -> None:
    section = values.get(name)
    if section is not None and not isinstance(section, dict):
        raise UserError(f"{where}: {name}: expected a JSON object")
    _check(section or {}, known, f"{where}: {name}")


def _check(values: dict[str, Any], known: frozenset[str], where: str) -> None:
    for name in values:
        if name not in known:
            raise UserError(f"{where}: DeepSpeed has no setting {name!r}{did_you_mean(name, sorted(known))}")
