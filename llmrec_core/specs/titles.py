"""Words over the fields of specs, where a field's own name says too little to a person: forms show them.

One word for one name in all families; a field that means something else under the same name has its own
``Field(title=...)``, which goes before.
"""

from __future__ import annotations

from pydantic.fields import FieldInfo

#: What a family of recommenders is called.
FAMILY_TITLES = {
    "popularity": "Popularity",
    "item-knn": "Item-kNN (what came after what)",
    "user-knn": "User-kNN (similar users)",
    "ease": "EASE (linear item weights)",
    "svd": "SVD (singular vectors)",
    "als": "ALS (matrix factors)",
    "bpr": "BPR (pairwise factors)",
    "bias-knn": "Rating model (bias and kNN)",
    "rating-factors": "Rating model (Bayesian factors)",
    "ratings": "Ratings (Bayesian factors and item texts)",
    "content-knn": "Content-kNN (similar texts)",
    "trend": "Trend (what is read now)",
    "listwise": "Language model that orders whole lists",
    "sequential": "Sequence model over item texts",
    "two-tower": "Two towers",
    "cross-encoder": "Language model that reads each candidate",
    "generative": "Language model that writes titles",
    "blend": "Blend of recommenders",
    "pipeline": "Two stages: find, then re-rank",
}

#: The same where there is little room: heads of columns, legends.
SHORT_FAMILY_TITLES = {
    "popularity": "Popularity",
    "item-knn": "Sequential item-kNN",
    "user-knn": "User-kNN",
    "ease": "EASE",
    "svd": "SVD",
    "als": "ALS",
    "bpr": "BPR",
    "bias-knn": "Rating model (bias and kNN)",
    "rating-factors": "Rating factors",
    "ratings": "Ratings (factors and texts)",
    "content-knn": "Content-kNN",
    "trend": "Trend",
    "sequential": "Sequence model",
    "generative": "Title writer",
    "two-tower": "Two towers",
    "blend": "Blend",
}

FIELD_TITLES = {
    # Recommenders.
    "alpha": "Trust in an interaction (alpha)",
    "approximate_above": "Search approximately above (items)",
    "batch_size": "Batch size",
    "beams": "Branches kept in the search",
    "damping": "Damping of offsets (ratings)",
    "direction": "Co-visits that count",
    "dropout": "Dropout",
    "epochs": "Epochs",
    "facts": "Facts of an item at most",
    "full_softmax_items": "Loss over all items up to (items)",
    "fusion_users": "Users that choose the weight",
    "half_life_days": "Half-life of an interaction (days)",
    "head": "What gives the answer",
    "id_bound": "How far an id may move a vector",
    "item_fields": "Item fields that are read",
    "l2": "Regularisation (L2)",
    "label_smoothing": "Label smoothing",
    "label_words": "Words of the answer",
    "last_items": "Latest history items that count",
    "loss": "What the loss runs over",
    "max_prompts": "Training prompts at most",
    "max_title_tokens": "Longest title (tokens)",
    "model_weight": "Weight of the model",
    "n_candidates": "Candidates of each user",
    "n_factors": "Factors",
    "n_heads": "Attention heads",
    "n_iterations": "Passes over the data",
    "n_layers": "Layers",
    "n_negatives": "Drawn negatives a step",
    "n_neighbours": "Neighbours that vote",
    "n_models": "Models that are averaged",
    "n_text": "Text dimensions kept",
    "n_permutations": "Orders in which a list is read",
    "patience": "Patience (validations without gain)",
    "pooling": "Token states to one vector",
    "prior": "Probability before any history",
    "prior_ridge": "Regularisation of what who-rated-what says",
    "rating_weight": "Weight of a rating",
    "recall": "Share that the search must find",
    "recency_decay": "Weight of each step back",
    "seen": "Learn from who rated what",
    "share_history": "Read a history once for all candidates",
    "shrink": "Doubt of rare neighbours",
    "smoothing": "Smoothing of shares",
    "step_decay": "Weight of a co-visit for each step",
    "text_attempts": "Attempts at a text",
    "text_field": "Column that is written",
    "text_tokens": "Longest text (tokens)",
    "text_weight": "Weight of the texts",
    "tuning_rate": "Learning rate of the language model",
    "tuning_steps": "Steps with the language model",
    "tuning_texts": "Texts read anew in such a step",
    "validation_users": "Validation users",
    "weights": "Weights of the parts",
    "width": "Size of the vectors",
    "window": "Steps between two co-visits at most",
    # Prompts and tuning.
    "freeze_embeddings": "Keep the word embeddings",
    "lora_alpha": "LoRA scale (alpha)",
    "lora_dropout": "LoRA dropout",
    "lora_rank": "LoRA rank",
    "lora_targets": "Matrices that LoRA adds to",
    "n_virtual_tokens": "Learned states before the text",
    "bottleneck_width": "Width of the small networks",
    "bottleneck_places": "Where small networks stand",
    "gradient_checkpointing": "Compute layers twice to save memory",
    "optimizer": "Optimizer",
    "max_field_chars": "Longest field (characters)",
    "max_history": "Longest history",
    "max_tokens": "Longest prompt (tokens)",
    "method": "Which weights are trained",
    "n_top_layers": "Layers trained",
    "profile_fields": "User fields that are read",
    "show_ratings": "Show ratings in the history",
    "show_time": "Show times in the history",
    # Training.
    "adversarial_epsilon": "Adversarial push of the word embeddings (FGM)",
    "augment_extent": "How much of a history is changed",
    "balance": "Balance of several tasks",
    "balance_alpha": "Push of slow tasks",
    "balance_rate": "Step of the task weights",
    "crop_history": "Share of cropped histories",
    "bucket_by_length": "Batch prompts of like length",
    "early_stopping_patience": "Patience (validations without gain)",
    "gradient_accumulation_steps": "Batches summed a step",
    "hard_negatives": "Share of hard negatives",
    "head_learning_rate": "Learning rate of the heads",
    "like_threshold": "Ratings above it are likes",
    "mask_history": "Share of thinned histories",
    "max_grad_norm": "Longest gradient",
    "max_samples": "Training prompts",
    "negatives_per_positive": "Drawn negatives of each interaction",
    "paraphrases": "Further wordings",
    "r_drop": "Agreement of two dropout passes (R-drop)",
    "rank_candidates": "Items of a list (rank)",
    "reorder_history": "Share of shuffled histories",
    "validation_every": "Steps between validations",
    "validation_metric": "Metric that is watched",
    "validation_samples": "Validation prompts",
    "warmup_ratio": "Warm-up (share of the steps)",
    "weight_decay": "Weight decay",
    # Evaluation and run.
    "click_negatives": "Drawn items beside each answer (AUC)",
    "confidence": "Level of the intervals",
    "ks": "Lengths of a ranking (k)",
    "max_users": "Test users",
    "min_group_users": "Smallest group that is shown (users)",
    "n_bootstrap": "Bootstrap resamples",
    "policy_depth": "Items that policies choose from",
    "primary_metric": "Metric that decides",
    "seed": "Seed",
    # Split.
    "fold": "Fold to test",
    "fold_in": "Known share of a history",
    "group_by": "Groups",
    "known_interactions": "Known interactions (k)",
    "min_item_interactions": "Fewest interactions of an item",
    "min_user_interactions": "Fewest interactions of a user",
    "n_folds": "Folds",
    "n_groups": "Number of groups",
    "rank_among": "Rank among",
    "test_fraction": "Share for the test",
    "tie_order": "Equal times",
    "time_from": "From (date)",
    "time_to": "Up to (date)",
    "train_window": "Training window",
    "valid_fraction": "Share for validation",
}


def field_title(name: str, info: FieldInfo | None = None) -> str:
    """The field's own title, else the word that all fields of this name have, else the name as words."""
    if info is not None and info.title:
        return info.title
    return FIELD_TITLES.get(name) or name.removeprefix("n_").replace("_", " ").capitalize()


#: Metric -> (its name for people, what it says).
METRIC_WORDS = {
    "ndcg": ("NDCG", "how high the held-out items stand in the list"),
    "hit_rate": ("hit rate", "how often a held-out item is in the list"),
    "precision": ("precision", "the share of the list that is right"),
    "recall": ("recall", "the share of the held-out items that is in the list"),
    "map": ("MAP", "how early the held-out items come in the list"),
    "mrr": ("MRR", "how early the first held-out item comes in the list"),
    "coverage": ("coverage", "the share of the catalogue that anyone is shown"),
    "novelty": ("novelty", "how little known the shown items are"),
    "serendipity": ("serendipity", "how far held-out items in the list stand above their place in the charts"),
    "diversity": ("diversity", "how unlike in categories the items of one list are"),
    "arp": ("ARP", "how many people have a shown item on average"),
    "aplt": ("APLT", "the share of the list that is from the long tail"),
    "gini": ("exposure Gini", "how unevenly the catalogue is shown: 0 all items alike, 1 a single one"),
    "miscalibration": ("miscalibration", "how far the categories of the list are from those of the history"),
    "auc": ("AUC", "how often a liked item scores above another one"),
    "gauc": ("per-user AUC", "how often, for one user, a liked item scores above another one"),
    "rmse": ("RMSE", "how far predicted ratings are off, large misses weighing more"),
    "mae": ("MAE", "how far predicted ratings are off"),
}


def metric_title(name: str) -> str:
    """``ndcg@10`` as people write it: ``NDCG@10``."""
    base, at, cut = name.partition("@")
    return METRIC_WORDS[base][0] + at + cut
