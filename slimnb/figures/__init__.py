"""The book's figures, one function each: DataFrame in, Axes out.

The caller passes the title, because the title is the finding. Seeds are dots and their mean is a line, the
paper's numbers are grey, a method has one colour in the whole book. Accuracies are in percent.
"""

from slimnb.figures.deps import (
    by_share,
    epsilon_ramps,
    layer_gradients,
    norm_ratio,
    search_progress,
    start_of_shrinking,
    training_cost,
)
from slimnb.figures.ds_net import (
    detections,
    gate_distribution,
    loss_ablation,
    routing_by_difficulty,
    simulation,
    slimmest_over_training,
    throughput,
)
from slimnb.figures.platforms import channels, forecast, latency_fit, market_shares, weighted_accuracy
from slimnb.figures.pss_net import (
    accuracy_by_resource,
    bucket_marginals,
    costs,
    exploration,
    fine_tuning,
    pool_contents,
    switching,
    top_k,
    trials,
)
from slimnb.figures.search import duality, marginals, trellis, unary
from slimnb.figures.slimmable import (
    accuracy,
    calibration,
    cost_histogram,
    difficulty_profile,
    easy_and_hard,
    image_grid,
    latency_bars,
    latency_by_width,
    layer_macs,
    slicing_diagram,
    statistics,
    training_curves,
)
from slimnb.figures.sp_net import (
    errors,
    gamma_histogram,
    latency_pairs,
    multi_base,
    padding,
    survivors,
    widths_by_layer,
)
from slimnb.style import alt_text, house_style, save

__all__ = ["accuracy", "accuracy_by_resource", "alt_text", "bucket_marginals", "by_share", "calibration", "channels",
           "cost_histogram", "costs", "detections", "difficulty_profile", "duality", "easy_and_hard", "epsilon_ramps",
           "errors", "exploration", "fine_tuning", "forecast", "gamma_histogram", "gate_distribution", "house_style",
           "image_grid", "latency_bars", "latency_by_width", "latency_fit", "latency_pairs", "layer_gradients",
           "layer_macs", "loss_ablation", "marginals", "market_shares", "multi_base", "norm_ratio", "padding",
           "pool_contents", "routing_by_difficulty", "save", "search_progress", "simulation", "slicing_diagram",
           "slimmest_over_training", "start_of_shrinking", "statistics", "survivors", "switching", "throughput",
           "top_k", "training_cost", "training_curves", "trellis", "trials", "unary", "weighted_accuracy",
           "widths_by_layer"]
