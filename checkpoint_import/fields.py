"""Every field of the configurations of transformers: served, without effect on an answer, or reported when it is set.

A test compares these tables with the installed transformers, so that a new field is looked at before it is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragserve.search_settings import SEARCH_SETTINGS

SERVED = (
    *SEARCH_SETTINGS,
    *("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id"),
    *("suppress_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty"),
)


@dataclass(frozen=True)
class Unserved:
    """A field that changes the answer of transformers and not ours: `neutral` values change nothing there either."""

    instead: str
    neutral: tuple[Any, ...] = ()

    def matters(self, value: Any) -> bool:
        """Whether transformers would answer differently."""
        return value is not None and value not in self.neutral


_SAMPLING = "a request that samples says it (options.sampling)"
_NO_SAMPLING = "sampling uses temperature, top_k and top_p only, from the request"
_REFUSED = "transformers refuses it for RAG"
UNSERVED: Mapping[str, Unserved] = {
    "do_sample": Unserved("an answer is sampled where the request asks for it (options.sampling)", (False,)),
    "temperature": Unserved(_SAMPLING, (1.0,)),
    "top_k": Unserved(_SAMPLING, (50, 0)),
    "top_p": Unserved(_SAMPLING, (1.0,)),
    "min_p": Unserved(_NO_SAMPLING, (0.0,)),
    "top_h": Unserved(_NO_SAMPLING),
    "typical_p": Unserved(_NO_SAMPLING, (1.0,)),
    "epsilon_cutoff": Unserved(_NO_SAMPLING, (0.0,)),
    "eta_cutoff": Unserved(_NO_SAMPLING, (0.0,)),
    "num_return_sequences": Unserved("a request says how many answers it wants", (1,)),
    "max_time": Unserved("a request has a deadline"),
    "stop_strings": Unserved("an answer ends with an end token or at its greatest length"),
    "sequence_bias": Unserved("scores are not biased; bad_words excludes sequences"),
    "encoder_repetition_penalty": Unserved("there is no such penalty", (1.0,)),
    "encoder_no_repeat_ngram_size": Unserved("n-grams of the passages may be repeated", (0,)),
    "renormalize_logits": Unserved("scores are not normalized again after tokens were excluded", (False,)),
    "guidance_scale": Unserved("there is no classifier-free guidance", (1, 1.0)),
    "watermarking_config": Unserved("answers carry no watermark"),
    "num_beam_groups": Unserved(_REFUSED, (1,)),
    "diversity_penalty": Unserved(_REFUSED, (0.0,)),
    "constraints": Unserved(_REFUSED),
    "force_words_ids": Unserved(_REFUSED),
    "penalty_alpha": Unserved(_REFUSED, (0.0,)),
    "dola_layers": Unserved(_REFUSED),
}

_ASSISTANT = "of assisted generation, which needs a second model"
_CACHE = "how the cache is kept, not what it holds"
_OUTPUT = "what `generate` returns beside the tokens"
HARMLESS: Mapping[str, str] = {
    "use_cache": _CACHE,
    "cache_implementation": _CACHE,
    "cache_config": _CACHE,
    "max_cache_len": _CACHE,
    "prefill_chunk_size": _CACHE,
    "low_memory": "of contrastive search alone",
    "remove_invalid_values": "for scores that are not numbers, which are an error here",
    "token_healing": "for prompts of decoder-only models",
    "output_attentions": _OUTPUT,
    "output_hidden_states": _OUTPUT,
    "output_logits": _OUTPUT,
    "output_scores": _OUTPUT,
    "return_dict_in_generate": _OUTPUT,
    "is_assistant": _ASSISTANT,
    "num_assistant_tokens": _ASSISTANT,
    "num_assistant_tokens_schedule": _ASSISTANT,
    "assistant_confidence_threshold": _ASSISTANT,
    "assistant_early_exit": _ASSISTANT,
    "assistant_ensemble_weight": _ASSISTANT,
    "assistant_lookbehind": _ASSISTANT,
    "target_lookbehind": _ASSISTANT,
    "prompt_lookup_num_tokens": "draft tokens from the prompt; the answer is the same",
    "max_matching_ngram_size": "draft tokens from the prompt; the answer is the same",
    "use_mtp": _ASSISTANT,
    "speculation_type": _ASSISTANT,
    "compile_config": "speed",
    "disable_compile": "speed",
    "continuous_batching_config": "speed",
    "transformers_version": "a note",
    "_from_model_config": "a note",
}

RAG_SERVED = (
    *("question_encoder", "generator", "n_docs", "max_combined_length", "title_sep", "doc_sep"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
)
RAG_UNSERVED: Mapping[str, Unserved] = {
    "prefix": Unserved("transformers ignores it too: the generator's own prefix counts", ("",)),
    "do_deduplication": Unserved("answers of RAG-Sequence are always distinct", (True,)),
    "label_smoothing": Unserved("RAG-Sequence ranks answers by their probability, not by the smoothed loss", (0.0,)),
}
_TRAINING = "of the training loss"
_RETRIEVER = "of the retriever of transformers; the knowledge base takes its place"
RAG_HARMLESS: Mapping[str, str] = {
    "reduce_loss": _TRAINING,
    "exclude_bos_score": "`generate` of RAG-Sequence always sets it",
    "do_marginalize": "`generate` of RAG-Token always marginalizes",
    "output_retrieved": _OUTPUT,
    "use_cache": _CACHE,
    "vocab_size": "the generator has its own",
    "dataset": _RETRIEVER,
    "dataset_revision": _RETRIEVER,
    "dataset_split": _RETRIEVER,
    "index_name": _RETRIEVER,
    "index_path": _RETRIEVER,
    "passages_path": _RETRIEVER,
    "retrieval_batch_size": _RETRIEVER,
    "retrieval_vector_size": _RETRIEVER,
    "use_dummy_dataset": _RETRIEVER,
}

MODEL_SERVED: Mapping[str, tuple[str, ...]] = {
    "bart": (
        *("activation_function", "d_model", "scale_embedding", "tie_word_embeddings", "vocab_size"),
        *("encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "max_position_embeddings"),
        *("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_eos_token_id"),
    ),
    "t5": (
        *("d_model", "d_ff", "d_kv", "num_layers", "num_decoder_layers", "num_heads", "vocab_size"),
        *("feed_forward_proj", "layer_norm_epsilon", "relative_attention_num_buckets"),
        *("relative_attention_max_distance", "eos_token_id", "pad_token_id"),
    ),
}
_DROPOUT, _CLASSIFIER = "nothing is dropped when a model answers", "of classifiers"
MODEL_HARMLESS: Mapping[str, str] = {
    "dropout": _DROPOUT,
    "dropout_rate": _DROPOUT,
    "attention_dropout": _DROPOUT,
    "activation_dropout": _DROPOUT,
    "encoder_layerdrop": _DROPOUT,
    "decoder_layerdrop": _DROPOUT,
    "classifier_dropout": _CLASSIFIER,
    "id2label": _CLASSIFIER,
    "label2id": _CLASSIFIER,
    "problem_type": _CLASSIFIER,
    "init_std": "of weights before training",
    "initializer_factor": "of weights before training",
    "use_cache": _CACHE,
    "is_decoder": "BART and T5 have both halves",
    "is_encoder_decoder": "BART and T5 have both halves",
    "chunk_size_feed_forward": "the same sums in parts",
    "dtype": "weights are read as float32; the generator's precision is its own setting",
    "output_hidden_states": _OUTPUT,
    "return_dict": _OUTPUT,
    "architectures": "a note",
    "transformers_version": "a note",
}
# Of BARTs from before 2021. Today's transformers computes as with these values, whatever the file says.
_OTHER_NETWORK = "transformers ignores it too, and computes a BART without it"
MODEL_UNSERVED: Mapping[str, Unserved] = {
    "normalize_before": Unserved(_OTHER_NETWORK, (False,)),
    "add_final_layer_norm": Unserved(_OTHER_NETWORK, (False,)),
    "add_bias_logits": Unserved(_OTHER_NETWORK, (False,)),
    "static_position_embeddings": Unserved(_OTHER_NETWORK, (False,)),
    "normalize_embedding": Unserved("transformers ignores it too: embeddings are always normalized", (True,)),
    "extra_pos_embeddings": Unserved("transformers ignores it too: positions start at row 2", (2,)),
}
