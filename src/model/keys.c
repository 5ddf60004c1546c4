/* Which keys of config.json may be passed over. A key in none of the lists is refused by name: it may change
 * the maths. */
#include "model/config.h"
#include <string.h>

/* Words between spaces. */
static const char READ_KEYS[] =
    " "
    "architectures model_type hidden_size num_hidden_layers num_attention_heads vocab_size "
    "intermediate_size max_position_embeddings num_key_value_heads head_dim rms_norm_eps hidden_act "
    "tie_word_embeddings rope_theta rope_scaling rope_parameters original_max_position_embeddings "
    "sliding_window use_sliding_window max_window_layers layer_types attention_bias mlp_bias "
    "eos_token_id bos_token_id quantization_config ";

/* Training, generation defaults of old files, bookkeeping of the library. */
static const char HARMLESS_KEYS[] =
    " "
    "torch_dtype dtype transformers_version use_cache initializer_range attention_dropout "
    "hidden_dropout resid_pdrop embd_pdrop mlp_dropout pretraining_tp pad_token_id unk_token_id "
    "sep_token_id cls_token_id mask_token_id decoder_start_token_id _name_or_path name_or_path "
    "tokenizer_class gradient_checkpointing attn_implementation _attn_implementation "
    "_attn_implementation_autoset _attn_implementation_internal _flash_attn_2_enabled "
    "use_flash_attention_2 keys_to_ignore_at_inference neftune_noise_alpha unsloth_fixed "
    "unsloth_version model_name is_decoder return_dict use_return_dict output_attentions "
    "output_hidden_states torchscript use_bfloat16 tf_legacy_loss chunk_size_feed_forward id2label "
    "label2id num_labels problem_type task_specific_params finetuning_task pruned_heads prefix "
    "max_length max_new_tokens min_length do_sample early_stopping num_beams num_beam_groups "
    "diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
    "output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens "
    "router_aux_loss_coef output_router_logits router_jitter_noise aux_loss_alpha seq_aux ep_size auto_map "
    "cache_implementation ignore_keys_at_rope_validation ";

/* Passed over only with the value that changes nothing. */
static const struct neutral {
    const char *key;
    enum json_kind kind; /* JK_BOOL or JK_REAL (an integer will do) */
    double value;
} NEUTRAL_KEYS[] = {
    {"partial_rotary_factor", JK_REAL, 1},
    {"rope_interleaved", JK_BOOL, 0},
    {"use_mrope", JK_BOOL, 0},
    {"is_encoder_decoder", JK_BOOL, 0},
    {"add_cross_attention", JK_BOOL, 0},
    {"tie_encoder_decoder", JK_BOOL, 0},
    {"use_qk_norm", JK_BOOL, 0},
    {"qk_layernorm", JK_BOOL, 0},
    {"use_bidirectional_attention", JK_BOOL, 0},
    {"lm_head_bias", JK_BOOL, 0},
    {"moe_layer_freq", JK_REAL, 1},
    {"full_attn_mod", JK_REAL, 1},
    {"interpolate_factor", JK_REAL, 1},
};

bool word_listed(const char *key, const char *list)
{
    size_t len = strlen(key);
    for (const char *at = list; len && !strchr(key, ' ') && (at = strstr(at, key)); at += len)
        if (at[-1] == ' ' && at[len] == ' ') return true;
    return false;
}

static const struct neutral *neutral_find(const char *key)
{
    for (size_t i = 0; i < COUNT_OF(NEUTRAL_KEYS); i++)
        if (!strcmp(key, NEUTRAL_KEYS[i].key)) return &NEUTRAL_KEYS[i];
    return NULL;
}

static bool is_neutral(const struct neutral *n, const struct json *v)
{
    if (n->kind == JK_BOOL) return json_kind(v) == JK_BOOL && json_bool(v, true) == (n->value != 0);
    return json_real(v, n->value + 1) == n->value;
}

static int check_key(struct fields *f, const struct arch *arch, const char *key, const struct json *v)
{
    char name[SHOWN_LEN];
    if (json_kind(v) == JK_NULL || word_listed(key, READ_KEYS) || word_listed(key, HARMLESS_KEYS)) return 0;
    if (arch->keys && word_listed(key, arch->keys)) return 0;
    const struct neutral *n = neutral_find(key);
    if (!n)
        return fields_fail(
            f, ERR_UNSUPPORTED,
            "\"%s\" is not understood and may change the results; remove it only if it does not",
            shown(key, name));
    if (is_neutral(n, v)) return 0;
    return fields_fail(f, ERR_UNSUPPORTED, "\"%s\" is not offered with a value other than %s", key,
                       n->kind == JK_BOOL ? (n->value != 0 ? "true" : "false") : "1");
}

int config_check_keys(struct fields *f, const struct arch *arch)
{
    for (void *it = json_first(f->object); it && !f->rc; it = json_next(f->object, it))
        check_key(f, arch, json_key(it), json_value(it));
    return f->rc;
}
